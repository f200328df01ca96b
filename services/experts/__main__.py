"""`python -m services.experts`: settings -> parts -> serve()."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry

from services.experts.assembly import open_worker
from services.experts.servicer import CALLERS, EXCHANGE, SERVICE, ExpertsServicer
from services.experts.settings import ExpertsSettings
from understudy.serving import HealthState, ServingSettings, run_service, serve


async def main(environ: Mapping[str, str], serving: ServingSettings) -> None:
    """Serve one model's shards until told to stop."""
    settings = ExpertsSettings.from_env(environ)
    health, registry = HealthState(is_ready=settings.is_ready_alone), CollectorRegistry()
    async with open_worker(settings, health=health, registry=registry) as worker:
        servicer = ExpertsServicer(worker)
        await serve("experts", servicer.register, settings=serving, services=[SERVICE],
                    health=health, on_drain=servicer.drain, tasks=[worker.sweep],
                    endless=[EXCHANGE], registry=registry, callers=CALLERS)  # fmt: skip


if __name__ == "__main__":
    run_service("experts", main)
