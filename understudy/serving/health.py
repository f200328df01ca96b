"""gRPC health: what a service says of itself, and the servicer that tells it.

Own servicer rather than grpcio's asyncio one: that one forgets the other watchers of a name when
one of them leaves, and this platform's channels watch health to balance.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from threading import Lock
from typing import Final

from grpc_health.v1 import health_pb2

from understudy.errors import NotFound

SERVING: Final = 1
NOT_SERVING: Final = 2
SERVICE_UNKNOWN: Final = 3
LIVENESS: Final = "liveness"
"""Name under which a probe asks whether a restart would help, whatever `is_ready` says."""


class HealthState:
    """Whether the service can take work; its threads may change it at any time."""

    def __init__(self, is_ready: bool = True) -> None:
        self._lock = Lock()
        self._is_ready = is_ready
        self._is_failed = False
        self._reason = "" if is_ready else "still starting"
        self._listeners: list[Callable[[], None]] = []

    @property
    def is_ready(self) -> bool:
        """Whether the service can take work."""
        return self._is_ready

    @property
    def is_failed(self) -> bool:
        """Whether the service can never take work again."""
        return self._is_failed

    @property
    def reason(self) -> str:
        """Why it cannot; empty while it can."""
        return self._reason

    def mark_ready(self) -> None:
        """Say that the service can take work."""
        self._change(is_ready=True, reason="")

    def mark_unready(self, reason: str) -> None:
        """Say that the service cannot take work, and why."""
        self._change(is_ready=False, reason=reason)

    def mark_failed(self, reason: str) -> None:
        """Say that only a restart helps, and why; nothing makes the service ready again."""
        self._is_failed = True
        self._change(is_ready=False, reason=reason)

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change, on the thread that made it."""
        with self._lock:
            self._listeners.append(listener)

    def _change(self, *, is_ready: bool, reason: str) -> None:
        with self._lock:
            if not (self._is_failed and is_ready):
                self._is_ready, self._reason = is_ready, reason
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener()


class HealthServicer:
    """Answers for the whole process (name "") and for each of its services alike.

    "liveness" is answered for those who restart processes: NOT_SERVING only once a restart helps.
    """

    def __init__(self, state: HealthState, services: Sequence[str]) -> None:
        self._state = state
        self._services = frozenset(("", LIVENESS, *services))
        self._watchers: set[asyncio.Event] = set()
        self._is_draining = False
        self._is_closed = False

    def refresh(self) -> None:
        """Tell watchers what changed; on the event loop's thread."""
        for watcher in self._watchers:
            watcher.set()

    def start_draining(self) -> None:
        """Say NOT_SERVING from now on, whatever the state says."""
        self._is_draining = True
        self.refresh()

    def close(self) -> None:
        """End every watch after its last message."""
        self._is_closed = True
        self.refresh()

    async def Check(  # noqa: N802
        self,
        request: health_pb2.HealthCheckRequest,
        context: object,  # noqa: ARG002
    ) -> health_pb2.HealthCheckResponse:
        """Status of a service; NOT_FOUND for one that does not live here."""
        if request.service not in self._services:
            raise NotFound(f"The service {request.service[:128]!r} does not live here.")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(  # noqa: N802
        self,
        request: health_pb2.HealthCheckRequest,
        context: object,  # noqa: ARG002
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Status of a service now and at each change, SERVICE_UNKNOWN included."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        last: int | None = None
        try:
            while not self._is_closed:
                changed.clear()
                status = self._status(request.service)
                if status != last:
                    last = status
                    yield health_pb2.HealthCheckResponse(status=status)
                else:
                    await changed.wait()
        finally:
            self._watchers.discard(changed)

    def _status(self, service: str) -> int:
        if service not in self._services:
            return SERVICE_UNKNOWN
        if service == LIVENESS:
            return NOT_SERVING if self._state.is_failed else SERVING
        is_serving = self._state.is_ready and not self._is_draining
        return SERVING if is_serving else NOT_SERVING
