"""A cluster in memory: scales, pods, marks, Events, leases; and pods that can be read."""

from dataclasses import dataclass, field, replace

from services.controller.cluster import (
    Conflict,
    LeaseRecord,
    Note,
    Pod,
    Scale,
    Workload,
)
from services.controller.scaling.windows import Info, Series
from understudy.errors import NotFound, Unavailable


class Clock:
    """A clock that tests turn."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class FakeCluster:
    """`Cluster` and `Leases`; `is_away` makes every call fail."""

    scales: dict[Workload, Scale] = field(default_factory=dict)
    pods_by: dict[str, list[Pod]] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    marks: dict[str, int | None] = field(default_factory=dict)
    changes: list[tuple[str, int]] = field(default_factory=list)
    leases: dict[str, LeaseRecord] = field(default_factory=dict)
    is_away: bool = False
    conflicts: int = 0
    """Changes that meet somebody else's."""
    _versions: int = 0

    async def scale(self, workload: Workload) -> Scale:
        self._check()
        if workload not in self.scales:
            raise NotFound(f"no {workload.name}")
        return self.scales[workload]

    async def set_replicas(self, workload: Workload, replicas: int, version: str) -> None:
        self._check()
        if self.conflicts or self.scales[workload].version != version:
            self.conflicts = max(self.conflicts - 1, 0)
            raise Conflict("another version")
        self.changes.append((workload.name, replicas))
        scale = self.scales[workload]
        self.scales[workload] = replace(scale, replicas=replicas, version=version + "1")

    async def pods(self, selector: str) -> list[Pod]:
        self._check()
        return self.pods_by.get(selector, [])

    async def mark(self, pod: str, deletion_cost: int | None) -> None:
        self._check()
        self.marks[pod] = deletion_cost

    async def write(self, note: Note) -> None:
        self._check()
        self.notes.append(note)

    async def read(self, name: str) -> LeaseRecord | None:
        self._check()
        return self.leases.get(name)

    async def create(self, name: str, holder: str, duration_s: int) -> None:
        self._check()
        if name in self.leases:
            raise Conflict("exists")
        self._write(name, LeaseRecord(holder, "", 0, ""))

    async def replace(self, name: str, record: LeaseRecord, duration_s: int) -> None:
        self._check()
        if self.leases[name].version != record.version:
            raise Conflict("another version")
        self._write(name, record)

    def _write(self, name: str, record: LeaseRecord) -> None:
        self._versions += 1
        version = str(self._versions)
        self.leases[name] = replace(record, renewed=version, version=version)

    def _check(self) -> None:
        if self.is_away:
            raise Unavailable("away")


@dataclass
class FakeReader:
    """Pods that answer with what a test set; others do not answer."""

    series: dict[str, Series] = field(default_factory=dict)
    infos: dict[str, Info] = field(default_factory=dict)

    async def metrics(self, address: str) -> Series:
        if address not in self.series:
            raise Unavailable(f"{address} does not answer")
        return self.series[address]

    async def info(self, address: str) -> Info:
        if address not in self.infos:
            raise Unavailable(f"{address} does not answer")
        return self.infos[address]


def series(**values: float) -> Series:
    """Return series without labels; `phase` of computed tokens is in the name after two bars."""
    found = {}
    for name, value in values.items():
        plain, _, phase = name.partition("__")
        found[plain, frozenset({("phase", phase)} if phase else ())] = value
    return found


def pod(name: str, **changes) -> Pod:
    """Return a pod that serves."""
    address = 10 + sum(map(ord, name)) % 200
    base = Pod(name, f"uid-{name}", f"10.0.0.{address}", is_ready=True, metrics_port=91,
               grpc_port=90)  # fmt: skip
    return replace(base, **changes)
