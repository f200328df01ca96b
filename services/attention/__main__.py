"""`python -m services.attention`: settings -> parts -> serve()."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry

from services.attention.assembly import open_worker
from services.attention.servicer import CALLERS, SERVICE, SESSION_METHOD, AttentionServicer
from services.attention.settings import AttentionSettings
from understudy.serving import HealthState, ServingSettings, Transport, run_service, serve


async def main(environ: Mapping[str, str], serving: ServingSettings) -> None:
    """Serve one model until told to stop."""
    settings = AttentionSettings.from_env(environ)
    health, registry = HealthState(is_ready=False), CollectorRegistry()
    transport = Transport.open(serving)
    async with open_worker(settings, health=health, registry=registry,
                           peers=transport.peer) as worker:  # fmt: skip
        await serve(f"attention-{settings.pool}", AttentionServicer(worker).register,
                    settings=serving, services=[SERVICE], health=health, on_drain=worker.hand_over,
                    endless=[SESSION_METHOD], registry=registry, callers=CALLERS,
                    transport=transport)  # fmt: skip


if __name__ == "__main__":
    run_service("attention", main)
