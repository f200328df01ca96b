"""`python -m services.attention`: settings -> parts -> serve()."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry

from services.attention.assembly import open_worker
from services.attention.servicer import SERVICE, SESSION_METHOD, AttentionServicer
from services.attention.settings import AttentionSettings
from understudy.serving import HealthState, ServingSettings, run_service, serve


async def main(environ: Mapping[str, str], serving: ServingSettings) -> None:
    """Serve one model until told to stop."""
    settings = AttentionSettings.from_env(environ)
    health, registry = HealthState(is_ready=False), CollectorRegistry()
    async with open_worker(settings, health=health, registry=registry) as worker:
        await serve(f"attention-{settings.pool}", AttentionServicer(worker).register,
                    settings=serving, services=[SERVICE], health=health, on_drain=worker.hand_over,
                    endless=[SESSION_METHOD], registry=registry)  # fmt: skip


if __name__ == "__main__":
    run_service("attention", main)
