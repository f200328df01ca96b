"""What scaling asks of a cluster, as data and protocols; `clients.kubernetes` is the real one."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from understudy.errors import UnderstudyError


class WorkloadKind(StrEnum):
    """Workloads with a scale subresource, by their plural in API paths."""

    DEPLOYMENT = "deployments"
    STATEFUL_SET = "statefulsets"

    @property
    def object_kind(self) -> str:
        """The kind as objects name it."""
        return "Deployment" if self is WorkloadKind.DEPLOYMENT else "StatefulSet"


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload of the controller's namespace."""

    kind: WorkloadKind
    name: str


@dataclass(frozen=True, slots=True)
class Scale:
    """The scale of a workload as the API server had it."""

    replicas: int
    selector: str
    """Label selector of its pods."""
    version: str
    """What a change must name, so that nobody else's is overwritten."""


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod of a workload."""

    name: str
    uid: str
    ip: str = ""
    is_ready: bool = False
    is_terminating: bool = False
    is_unschedulable: bool = False
    """Whether the scheduler has looked and found no node."""
    deletion_cost: int | None = None
    """Its mark, lower goes first; None without one."""
    metrics_port: int = 0
    """0 when no container names a port `metrics`."""
    grpc_port: int = 0
    """0 when no container names a port `grpc`."""


@dataclass(frozen=True, slots=True)
class Note:
    """An Event about a workload."""

    workload: Workload
    reason: str
    """CamelCase, such as ScaledUp."""
    message: str
    is_warning: bool = False


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """Who leads, as the API server had it."""

    holder: str
    renewed: str
    """Time of the holder's last renewal, on its clock: only compared for being another."""
    transitions: int
    version: str


class Conflict(UnderstudyError):
    """Somebody else changed the object first: look again."""

    code = "ABORTED"
    reason = "CONFLICT"


class Cluster(Protocol):
    """The API server, seen from one namespace. Calls raise Unavailable, changes also Conflict."""

    async def scale(self, workload: Workload) -> Scale:
        """Return the scale of a workload. Raises NotFound when there is none."""
        ...

    async def set_replicas(self, workload: Workload, replicas: int, version: str) -> None:
        """Change the scale that had this version."""
        ...

    async def pods(self, selector: str) -> Sequence[Pod]:
        """Return the pods that have not ended."""
        ...

    async def mark(self, pod: str, deletion_cost: int | None) -> None:
        """Set or take away a pod's deletion cost."""
        ...

    async def write(self, note: Note) -> None:
        """Write an Event."""
        ...


class Leases(Protocol):
    """Leases of the namespace. Calls raise Unavailable, changes also Conflict."""

    async def read(self, name: str) -> LeaseRecord | None:
        """Return a lease, None when there is none."""
        ...

    async def create(self, name: str, holder: str, duration_s: int) -> None:
        """Create a lease."""
        ...

    async def replace(self, name: str, record: LeaseRecord, duration_s: int) -> None:
        """Write holder, transitions and the present time over the version of the record."""
        ...
