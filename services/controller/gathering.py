"""Looks at all pools: counts pods over the API server, reads workers' metrics and `Info`.

Scraping rather than having workers report: the figures are those that dashboards show and people
can repeat, a worker that hangs is missed instead of being late, and no worker has to know the
controller. Only what no worker can tell, requests held for a pool without one, is reported.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from services.controller.cluster import Cluster, Pod, Scale, Workload
from services.controller.demand import Demand
from services.controller.scaling.signals import Part, PodCounts, PoolSignals, Signals
from services.controller.scaling.windows import (
    Info,
    Reading,
    Series,
    Window,
    attention_load,
    experts_load,
    quantile,
    window,
)
from understudy.errors import UnderstudyError

TTFT: Final = "gen_ai_server_time_to_first_token_seconds"
"""Of attempts: what a request saw of another pool before it was escalated is not this one's."""
TAIL: Final = 0.9
MAX_READS: Final = 32
"""Pods that are read at once."""
KEPT_S: Final = 600.0
log = logging.getLogger(__name__)
_Found = TypeVar("_Found")


class Reader(Protocol):
    """Reads one pod. Calls raise UnderstudyError when it does not answer."""

    async def metrics(self, address: str) -> Series:
        """Return its metrics now."""
        ...

    async def info(self, address: str) -> Info:
        """Return what an attention worker says of itself."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """The workloads of one pool."""

    pool: str
    workloads: Mapping[Part, Workload]


@dataclass(frozen=True, slots=True)
class PartSight:
    """One part as it was seen, for whoever acts on it."""

    workload: Workload
    scale: Scale
    pods: Sequence[Pod]
    in_flight: Mapping[str, float] = field(default_factory=dict)
    """Load of pods that could be read, by name: the least loaded leave first."""


@dataclass(frozen=True, slots=True)
class Sight:
    """Everything seen in one look."""

    signals: Signals
    parts: Mapping[tuple[str, Part], PartSight]


@dataclass(frozen=True, slots=True)
class _Read:
    """One pod that was read."""

    pod: Pod
    window: Window | None
    info: Info | None


class Gatherer:
    """Turns looks into signals; remembers the last reading of every pod."""

    def __init__(
        self,
        targets: Sequence[Target],
        cluster: Cluster,
        reader: Reader,
        demand: Demand,
        *,
        routers: str,
        patience_s: float,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`routers` selects the routers' pods; `patience_s` is what the scheduler gets."""
        self._targets = targets
        self._cluster = cluster
        self._reader = reader
        self._demand = demand
        self._routers = routers
        self._patience_s = patience_s
        self._clock_s = clock_s
        self._readings: dict[str, Reading] = {}
        self._refused: dict[str, tuple[float, float]] = {}
        """Since when and when last the scheduler found no node, by pod."""
        self._reads = asyncio.Semaphore(MAX_READS)

    async def look(self) -> Sight:
        """Look once; a pool that cannot be counted is left out."""
        routers = await self._router_windows()
        pools: dict[str, PoolSignals] = {}
        parts: dict[tuple[str, Part], PartSight] = {}
        for target in self._targets:
            try:
                seen = await self._count(target)
            except UnderstudyError as error:
                log.warning(
                    "The pods of a pool cannot be counted.",
                    extra={"pool": target.pool, "cause": error.message},
                )
                continue
            pools[target.pool] = await self._signals(target.pool, seen, routers)
            parts |= {(target.pool, part): one for part, one in seen.items()}
        self._forget()
        return Sight(Signals(self._clock_s(), pools), parts)

    async def _count(self, target: Target) -> dict[Part, PartSight]:
        seen: dict[Part, PartSight] = {}
        for part, workload in target.workloads.items():
            scale = await self._cluster.scale(workload)
            pods = await self._cluster.pods(scale.selector) if scale.selector else []
            seen[part] = PartSight(workload, scale, pods)
        return seen

    async def _signals(
        self, pool: str, seen: dict[Part, PartSight], routers: Sequence[Window]
    ) -> PoolSignals:
        attention = await self._read_all(seen[Part.ATTENTION].pods, with_info=True)
        windows = [one.window for one in attention if one.window is not None]
        infos = [one.info for one in attention if one.info is not None]
        in_flight = {
            one.pod.name: float(one.info.running + one.info.waiting)
            for one in attention
            if one.info is not None
        }
        sight = seen[Part.ATTENTION]
        seen[Part.ATTENTION] = PartSight(sight.workload, sight.scale, sight.pods, in_flight)
        experts = seen.get(Part.EXPERTS)
        expert_windows = await self._read_experts(seen) if experts else []
        load = attention_load(windows, infos)
        return PoolSignals(
            self._counts(sight, len(windows)),
            load,
            self._counts(experts, len(expert_windows)) if experts else None,
            experts_load(expert_windows),
            ttft_s=quantile(routers, TTFT, TAIL, pool=pool),
            # A sequence gets a token in every step it is in.
            tpot_s=load.step_s / load.steps if load is not None and load.steps else None,
            held_requests=self._demand.held().get(pool, 0),
        )

    async def _read_experts(self, seen: dict[Part, PartSight]) -> list[Window]:
        sight = seen[Part.EXPERTS]
        reads = await self._read_all(sight.pods, with_info=False)
        busy = {
            one.pod.name: one.window.total("understudy_experts_rows_total")
            for one in reads
            if one.window is not None
        }
        seen[Part.EXPERTS] = PartSight(sight.workload, sight.scale, sight.pods, busy)
        return [one.window for one in reads if one.window is not None]

    async def _router_windows(self) -> list[Window]:
        try:
            pods = await self._cluster.pods(self._routers)
        except UnderstudyError as error:
            log.warning("The routers cannot be counted.", extra={"cause": error.message})
            return []
        reads = await self._read_all(pods, with_info=False)
        return [one.window for one in reads if one.window is not None]

    async def _read_all(self, pods: Sequence[Pod], *, with_info: bool) -> list[_Read]:
        """Read the ready pods; those that did not answer have no window."""
        ready = [pod for pod in pods if pod.is_ready and not pod.is_terminating and pod.ip]
        return list(await asyncio.gather(*(self._read(pod, with_info) for pod in ready)))

    async def _read(self, pod: Pod, with_info: bool) -> _Read:
        async with self._reads:
            found = None
            if pod.metrics_port:
                found = await self._answer(pod, self._reader.metrics(_at(pod, pod.metrics_port)))
            info = None
            if found is not None and with_info:
                info = await self._answer(pod, self._reader.info(_at(pod, pod.grpc_port)))
        if found is None or (with_info and info is None):
            return _Read(pod, None, None)
        reading, before = Reading(self._clock_s(), found), self._readings.get(pod.uid)
        self._readings[pod.uid] = reading
        return _Read(pod, window(before, reading) if before else None, info)

    async def _answer(self, pod: Pod, call: Coroutine[None, None, _Found]) -> _Found | None:
        try:
            return await call
        except UnderstudyError as error:
            log.warning("A pod cannot be read.", extra={"pod": pod.name, "cause": error.message})
            return None

    def _counts(self, sight: PartSight, reporting: int) -> PodCounts:
        live = [pod for pod in sight.pods if not pod.is_terminating]
        ready = sum(pod.is_ready for pod in live)
        unschedulable = sum(self._is_refused(pod) for pod in live)
        return PodCounts(
            desired=sight.scale.replicas,
            ready=ready,
            starting=len(live) - ready - unschedulable,
            unschedulable=unschedulable,
            terminating=len(sight.pods) - len(live),
            reporting=reporting,
        )

    def _is_refused(self, pod: Pod) -> bool:
        if not pod.is_unschedulable:
            self._refused.pop(pod.uid, None)
            return False
        now_s = self._clock_s()
        since_s, _ = self._refused.get(pod.uid, (now_s, now_s))
        self._refused[pod.uid] = since_s, now_s
        return now_s - since_s >= self._patience_s

    def _forget(self) -> None:
        """Drop what was not seen for a while: its pods are gone."""
        old_s = self._clock_s() - KEPT_S
        self._readings = {
            uid: reading for uid, reading in self._readings.items() if reading.at_s > old_s
        }
        self._refused = {uid: seen for uid, seen in self._refused.items() if seen[1] > old_s}


def _at(pod: Pod, port: int) -> str:
    return f"[{pod.ip}]:{port}" if ":" in pod.ip else f"{pod.ip}:{port}"
