"""Which calls run: admission, the count that drain waits for, and the end of those that stay.

Endless calls (streams that live as long as their peer) are admitted and ended like the others,
but drain does not wait for them: the service hands their work over in its `on_drain`.
"""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final

from understudy.errors import ResourceExhausted, Unavailable

OVERLOAD_RETRY_S: Final = 1.0


class RunningCalls:
    """The calls being served by this process; used on one event loop."""

    def __init__(self, max_calls: int, endless: Collection[str]) -> None:
        self._max_calls = max_calls
        self._endless = frozenset(endless)
        self._tasks: set[asyncio.Task[object]] = set()
        self._num_awaited = 0
        self._interrupted: set[asyncio.Task[object]] = set()
        self._is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def is_endless(self, method: str) -> bool:
        """Whether calls of this method live as long as their peer."""
        return method in self._endless

    @contextmanager
    def admitted(self, method: str) -> Iterator[None]:
        """Count the current task's call while it runs.

        Raises `Unavailable` while draining and `ResourceExhausted` beyond the limit.
        """
        if self._is_draining:
            raise Unavailable("This process is draining; retry on another replica.")
        if len(self._tasks) >= self._max_calls:
            raise ResourceExhausted(
                f"This process serves its limit of {self._max_calls} calls; retry later.",
                retry_after_s=OVERLOAD_RETRY_S,
            )
        task = asyncio.current_task()
        assert task is not None, "calls are served by tasks"
        self._tasks.add(task)
        self._count(0 if self.is_endless(method) else 1)
        try:
            yield
        finally:
            self._tasks.discard(task)
            self._interrupted.discard(task)
            self._count(0 if self.is_endless(method) else -1)

    def start_draining(self) -> None:
        """Refuse new calls from now on."""
        self._is_draining = True

    async def wait_idle(self) -> None:
        """Return once no call but endless ones runs."""
        await self._idle.wait()

    def interrupt(self) -> int:
        """Cancel every call that still runs; each ends with UNAVAILABLE. Returns how many."""
        for task in self._tasks:
            self._interrupted.add(task)
            task.cancel()
        return len(self._tasks)

    def is_interrupted(self) -> bool:
        """Whether the current task was cancelled by `interrupt`."""
        return asyncio.current_task() in self._interrupted

    def _count(self, change: int) -> None:
        self._num_awaited += change
        if self._num_awaited:
            self._idle.clear()
        else:
            self._idle.set()
