"""The published tables: newest per pool, and whoever waits for a newer one."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from services.controller.placement import Holding, Table, next_epoch, place
from understudy.errors import NotFound


def unix_ms() -> int:
    """Return the Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


class Tables:
    """One table a pool. Belongs to one event loop."""

    def __init__(self, pools: Iterable[str], clock_ms: Callable[[], int] = unix_ms) -> None:
        """Start every pool with an empty table."""
        self._clock_ms = clock_ms
        self._tables = {pool: Table(pool, next_epoch(0, clock_ms()), ()) for pool in pools}
        self._changed = asyncio.Condition()

    def current(self, pool: str) -> Table:
        """Return a pool's table. Raises NotFound for a pool without expert workers."""
        if pool not in self._tables:
            raise NotFound(
                f"The pool {pool!r} has no expert workers here; known: "
                f"{', '.join(sorted(self._tables)) or 'none'}.",
                {"pool": pool},
            )
        return self._tables[pool]

    async def update(self, pool: str, holdings: Sequence[Holding]) -> Table | None:
        """Publish a newer table if the healthy replicas changed; None when they did not."""
        table, shares = self.current(pool), place(holdings)
        if shares == table.shares:
            return None
        newer = Table(pool, next_epoch(table.epoch, self._clock_ms()), shares)
        async with self._changed:
            self._tables[pool] = newer
            self._changed.notify_all()
        return newer

    async def watch(self, pool: str) -> AsyncIterator[Table]:
        """Yield the current table at once, then each newer one; a slow reader skips some."""
        table = self.current(pool)
        while True:
            yield table
            table = await self._newer(table)

    async def _newer(self, table: Table) -> Table:
        async with self._changed:
            await self._changed.wait_for(lambda: self._tables[table.pool].epoch > table.epoch)
            return self._tables[table.pool]
