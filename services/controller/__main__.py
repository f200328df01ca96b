"""`python -m services.controller`: settings -> parts -> serve()."""

from collections.abc import Mapping
from contextlib import aclosing
from functools import partial

from prometheus_client import CollectorRegistry

from services.controller.clients import GrpcProber
from services.controller.metrics import ControllerMetrics
from services.controller.probing import PoolKeeper, announce
from services.controller.servicer import SERVICE, WATCH, ControllerServicer
from services.controller.settings import ControllerSettings
from services.controller.tables import Tables
from understudy.serving import HealthState, ServingSettings, run_service, serve


async def main(environ: Mapping[str, str], serving: ServingSettings) -> None:
    """Publish placements until told to stop."""
    settings, registry = ControllerSettings.from_env(environ), CollectorRegistry()
    members, metrics = settings.members(), ControllerMetrics.on(registry)
    tables, health = Tables(pool.pool for pool in members), HealthState(is_ready=False)
    async with aclosing(GrpcProber(settings.probe_timeout_s)) as prober:
        keepers = [PoolKeeper(pool, prober, tables, metrics) for pool in members]
        tasks = [partial(keeper.run, settings.probe_interval_s) for keeper in keepers]
        await serve("controller", ControllerServicer(tables, metrics).register,
                    settings=serving, services=[SERVICE], endless=[WATCH], health=health,
                    tasks=[*tasks, partial(announce, tables, health)],
                    registry=registry)  # fmt: skip


if __name__ == "__main__":
    run_service("controller", main)
