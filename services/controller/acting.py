"""Carries decisions out: marks the emptiest workers, changes scales, writes Events and the log.

Only the scale subresource is touched: whoever owns the workload (a ReplicaSet, a StatefulSet)
deletes the pods, the kubelet sends SIGTERM, and the worker drains as it always does. The next
decision sees it draining and takes no other away before it is gone.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from services.controller.cluster import Cluster, Conflict, Note, Pod, WorkloadKind
from services.controller.gathering import PartSight
from services.controller.metrics import ScalingMetrics
from services.controller.scaling.deciding import Decision, PartDecision
from services.controller.scaling.signals import Part
from services.controller.scaling.steadying import Cause
from understudy.errors import UnderstudyError

FIRST_TO_GO: Final = -100
"""Deletion cost of the workers that are to leave; a pod without a mark has 0."""
QUIET: Final = frozenset({Cause.STABILISATION, Cause.DOWN_COOL_DOWN, Cause.UP_COOL_DOWN})
"""Holds of every day: logged and counted, but no Event."""
log = logging.getLogger("understudy.scaling")

PartKey = tuple[str, Part]


class Actor:
    """Applies the decisions of a leader."""

    def __init__(
        self,
        cluster: Cluster,
        metrics: ScalingMetrics,
        *,
        is_dry_run: bool,
        may_act: Callable[[], bool] = lambda: True,
    ) -> None:
        """`may_act` is asked before every change: a leader may have lost its lease meanwhile."""
        self._cluster = cluster
        self._metrics = metrics
        self._is_dry_run = is_dry_run
        self._may_act = may_act
        self._told: dict[PartKey, tuple[int, frozenset[Cause]]] = {}

    async def apply(self, decision: Decision, parts: Mapping[PartKey, PartSight]) -> None:
        """Change what the decision changes; shrink before anything grows."""
        self._metrics.count(decision)
        for one in sorted(decision.parts, key=lambda one: one.replicas - one.before):
            sight = parts.get((one.pool, one.part))
            is_done = False
            if sight is not None and one.replicas != one.before and not self._is_dry_run:
                is_done = await self._change(one, sight)
            await self._tell(one, sight, is_done=is_done)

    async def _change(self, one: PartDecision, sight: PartSight) -> bool:
        """Change one scale; False when it did not come to that."""
        if not self._may_act():
            return False
        try:
            if one.replicas < one.before and sight.workload.kind is WorkloadKind.DEPLOYMENT:
                await self._mark(sight, one.before - one.replicas)
            await self._cluster.set_replicas(sight.workload, one.replicas, sight.scale.version)
        except UnderstudyError as error:
            level = logging.INFO if isinstance(error, Conflict) else logging.ERROR
            self._metrics.failures.labels(one.pool, one.part.value).inc()
            log.log(
                level,
                "A scale was not changed; the next tick decides anew.",
                extra={"pool": one.pool, "part": one.part.value, "cause": error.message},
            )
            return False
        return True

    async def _mark(self, sight: PartSight, num_leaving: int) -> None:
        """Mark the pods of a Deployment that are to leave; a StatefulSet reads no marks."""
        leaving = {pod.name for pod in emptiest(sight.pods, sight.in_flight, num_leaving)}
        for pod in sight.pods:
            cost = FIRST_TO_GO if pod.name in leaving else None
            if pod.deletion_cost != cost and not pod.is_terminating:
                await self._cluster.mark(pod.name, cost)

    async def _tell(self, one: PartDecision, sight: PartSight | None, *, is_done: bool) -> None:
        """Log a decision that differs from the last, and write its Event."""
        key, causes = (one.pool, one.part), frozenset(hold.cause for hold in one.holds)
        is_change = one.replicas != one.before
        if not is_change and self._told.get(key) == (one.replicas, causes):
            return
        self._told[key] = (one.replicas, causes)
        log.info(
            "Scaling decision.",
            extra={
                "pool": one.pool,
                "part": one.part.value,
                "before": one.before,
                "needed": one.needed,
                "replicas": one.replicas,
                "why": one.reason,
                "holds": [f"{hold.cause.value}: {hold.detail}" for hold in one.holds],
                "ratio": one.ratio,
                "applied": is_done,
            },
        )
        if sight is None or self._is_dry_run or not (is_done or causes - QUIET):
            return
        try:
            await self._cluster.write(_note(one, sight))
        except UnderstudyError as error:
            log.warning("An Event was not written.", extra={"cause": error.message})


def emptiest(pods: Sequence[Pod], in_flight: Mapping[str, float], num: int) -> list[Pod]:
    """Return the pods to take away first: those that do not serve, then the least loaded.

    A ready pod that could not be read may be full, so it goes last.
    """
    live = [pod for pod in pods if not pod.is_terminating]

    def load(pod: Pod) -> tuple[bool, float, str]:
        return pod.is_ready, in_flight.get(pod.name, float("inf")), pod.name

    return sorted(live, key=load)[:num]


def _note(one: PartDecision, sight: PartSight) -> Note:
    reason = "ScalingHeld"
    if one.replicas != one.before:
        reason = "ScaledUp" if one.replicas > one.before else "ScaledDown"
    held = " ".join(f"Held ({hold.cause.value}): {hold.detail}" for hold in one.holds)
    message = f"{one.before} -> {one.replicas} replicas, {one.needed} needed: {one.reason} {held}"
    is_warning = any(hold.cause is Cause.UNSCHEDULABLE for hold in one.holds)
    return Note(sight.workload, reason, message.strip(), is_warning)
