"""Puts the scaling side together from its settings."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from services.controller.acting import Actor
from services.controller.clients.kubernetes import KubernetesCluster
from services.controller.clients.pods import PodReader
from services.controller.demand import Demand
from services.controller.gathering import Gatherer
from services.controller.leading import Leadership
from services.controller.loop import ScalingLoop
from services.controller.metrics import ScalingMetrics
from services.controller.scaling_settings import ScalingSettings
from understudy.rpc import Peer


@dataclass(frozen=True, slots=True)
class Scaling:
    """The running parts of scaling."""

    loop: ScalingLoop
    leadership: Leadership


@asynccontextmanager
async def open_scaling(
    settings: ScalingSettings,
    registry: CollectorRegistry,
    cluster: KubernetesCluster | None = None,
    attention: Peer | None = None,
) -> AsyncIterator[Scaling | None]:
    """Yield the parts, None when the settings scale nothing; connections close at the end.

    Without a `cluster` it is the one this process runs in, or the kubeconfig's.
    `attention` says how TLS is spoken with attention workers, plaintext without it.
    """
    plan = settings.plan()
    if plan is None:
        yield None
        return
    identity = settings.own_identity()
    cluster = cluster or KubernetesCluster(settings.namespace, identity)
    metrics, demand = ScalingMetrics.on(registry), Demand()
    leadership = Leadership(cluster, settings.lease, identity)
    pods = PodReader(settings.read_timeout_s, attention)
    async with aclosing(cluster), aclosing(pods) as reader:
        gatherer = Gatherer(
            plan.targets, cluster, reader, demand,
            routers=settings.routers, patience_s=settings.unschedulable_after_s,
        )  # fmt: skip
        actor = Actor(
            cluster, metrics,
            is_dry_run=settings.dry_run, may_act=lambda: leadership.is_leading,
        )  # fmt: skip
        loop = ScalingLoop(
            plan.rules, gatherer, actor, demand, metrics, lambda: leadership.is_leading
        )
        yield Scaling(loop, leadership)
