"""`python -m services.router`: settings -> parts -> serve()."""

from collections.abc import Mapping
from dataclasses import replace

from prometheus_client import CollectorRegistry

from services.router.assembly import build_router
from services.router.servicer import SERVICE
from services.router.settings import RouterSettings
from understudy.serving import ANYONE, HealthState, ServingSettings, Transport, run_service, serve


async def main(environ: Mapping[str, str], serving: ServingSettings) -> None:
    """Serve callers until told to stop."""
    settings = RouterSettings.from_env(environ)
    settings.check_open(serving.listen, settings.http_listen)
    health, registry = HealthState(is_ready=False), CollectorRegistry()
    transport = Transport.open(serving, settings.tls_dir)
    router = build_router(settings, health=health, registry=registry, transport=transport)
    serving = replace(serving, drain_grace_s=settings.drain_s)
    await serve("router", router.servicer.register, settings=serving, services=[SERVICE],
                health=health, on_drain=router.drain, tasks=router.tasks,
                registry=registry, max_receive_bytes=settings.max_body_bytes,
                callers=ANYONE, transport=transport)  # fmt: skip


if __name__ == "__main__":
    run_service("router", main)
