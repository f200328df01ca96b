"""`python -m services.controller`: settings -> parts -> serve()."""

from collections.abc import Mapping
from contextlib import aclosing
from functools import partial

from prometheus_client import CollectorRegistry

from services.controller.assembly import open_scaling
from services.controller.clients.experts import GrpcProber
from services.controller.metrics import ControllerMetrics
from services.controller.probing import PoolKeeper, announce
from services.controller.scaling_settings import ScalingSettings
from services.controller.servicer import CALLERS, SERVICE, WATCH, ControllerServicer
from services.controller.settings import ControllerSettings
from services.controller.tables import Tables
from understudy.serving import HealthState, ServingSettings, Transport, run_service, serve


async def main(environ: Mapping[str, str], serving: ServingSettings) -> None:
    """Publish placements and size pools until told to stop."""
    settings, registry = ControllerSettings.from_env(environ), CollectorRegistry()
    members, metrics = settings.members(), ControllerMetrics.on(registry)
    tables, health = Tables(pool.pool for pool in members), HealthState(is_ready=False)
    sizing = ScalingSettings.from_env(environ)
    transport = Transport.open(serving)
    prober = aclosing(GrpcProber(settings.probe_timeout_s, transport.peer("experts")))
    sizer = open_scaling(sizing, registry, attention=transport.peer("attention"))
    async with prober as probes, sizer as scaling:
        keepers = [PoolKeeper(pool, probes, tables, metrics) for pool in members]
        tasks = [task for keeper in keepers for task in keeper.tasks(settings.probe_interval_s)]
        tasks.append(partial(announce, tables, health))
        if scaling:
            tasks += [partial(scaling.loop.run, sizing.interval_s), scaling.leadership.run]
        servicer = ControllerServicer(tables, metrics, scaling.loop if scaling else None)
        await serve("controller", servicer.register, settings=serving, services=[SERVICE],
                    endless=[WATCH], health=health, tasks=tasks, registry=registry,
                    callers=CALLERS, transport=transport)  # fmt: skip


if __name__ == "__main__":
    run_service("controller", main)
