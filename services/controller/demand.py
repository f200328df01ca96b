"""Requests that routers hold for pools without workers, as they last reported them."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

EXPIRY_S: Final = 30.0
"""A report counts for so long; routers repeat theirs while they hold anything."""
MAX_REPORTERS: Final = 1024


class Demand:
    """What is held, by pool. Belongs to one event loop."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._reports: dict[str, tuple[float, Mapping[str, int]]] = {}
        self._woken = asyncio.Event()

    def report(self, router: str, held: Mapping[str, int]) -> None:
        """Take a router's report; it replaces the one before."""
        before = self.held()
        self._reports.pop(router, None)
        if any(held.values()):
            self._reports[router] = (self._clock_s(), dict(held))
        while len(self._reports) > MAX_REPORTERS:
            del self._reports[next(iter(self._reports))]
        if any(count and not before.get(pool) for pool, count in held.items()):
            self._woken.set()

    def held(self) -> dict[str, int]:
        """Return the requests held now, by pool."""
        fresh_s = self._clock_s() - EXPIRY_S
        self._reports = {
            router: report for router, report in self._reports.items() if report[0] > fresh_s
        }
        held: dict[str, int] = {}
        for _, counts in self._reports.values():
            for pool, count in counts.items():
                held[pool] = held.get(pool, 0) + count
        return held

    async def wait(self, timeout_s: float) -> None:
        """Return after a time, or as soon as a pool is asked for that nobody asked for before."""
        try:
            await asyncio.wait_for(self._woken.wait(), timeout_s)
        except TimeoutError:
            return
        self._woken.clear()
