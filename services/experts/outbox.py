"""Answers of one stream on their way out: in from any thread, written by one task.

Bounded by its user, who reads nothing more from a peer while too many of its answers wait.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable


class Outbox:
    """Made and written on one event loop."""

    def __init__(self, max_waiting: int) -> None:
        """Above `max_waiting` answers there is no room."""
        self._max_waiting = max_waiting
        self._loop = asyncio.get_running_loop()
        self._answers: asyncio.Queue[list[bytes]] = asyncio.Queue()
        self._lock = threading.Lock()
        self._num_waiting = 0
        self._has_changed = asyncio.Event()
        self._is_closed = False

    @property
    def num_waiting(self) -> int:
        """Answers that were not wholly written; 0 once there is nobody to read them."""
        return 0 if self._is_closed else self._num_waiting

    def send(self, frames: list[bytes]) -> None:
        """Take the frames of an answer, in order; safe from any thread."""
        self._count(1)
        self._loop.call_soon_threadsafe(self._answers.put_nowait, frames)

    async def write_to(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Write what comes until cancelled, or until `write` raises."""
        try:
            while True:
                for frame in await self._answers.get():
                    await write(frame)
                self._count(-1)
                self._has_changed.set()
        finally:
            self.close()

    def close(self) -> None:
        """Note that the stream has ended; nobody need wait any more."""
        self._is_closed = True
        self._has_changed.set()

    async def wait_for_room(self) -> None:
        """Return once no more than `max_waiting` answers wait."""
        await self._wait_for(self._max_waiting)

    async def wait_empty(self) -> None:
        """Return once every answer was written, or the stream has ended."""
        await self._wait_for(0)

    async def _wait_for(self, max_waiting: int) -> None:
        while self.num_waiting > max_waiting:
            self._has_changed.clear()
            await self._has_changed.wait()

    def _count(self, change: int) -> None:
        with self._lock:
            self._num_waiting += change
