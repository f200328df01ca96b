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
    """One table a pool, from its first update on. Belongs to one event loop.

    A pool has no table before: an empty one, newer than all that a controller before this one has
    published, would take its placement away from whoever watches.
    """

    def __init__(self, pools: Iterable[str], clock_ms: Callable[[], int] = unix_ms) -> None:
        self._clock_ms = clock_ms
        self._tables: dict[str, Table | None] = dict.fromkeys(pools)
        self._changed = asyncio.Condition()

    def current(self, pool: str) -> Table | None:
        """Return a pool's table, None before the first. Raises NotFound for an unknown pool."""
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
        if table is not None and shares == table.shares:
            return None
        epoch = 0 if table is None else table.epoch
        newer = Table(pool, next_epoch(epoch, self._clock_ms()), shares)
        async with self._changed:
            self._tables[pool] = newer
            self._changed.notify_all()
        return newer

    async def watch(self, pool: str) -> AsyncIterator[Table]:
        """Yield the table as soon as there is one, then each newer one; a slow reader skips some.

        Raises NotFound for an unknown pool.
        """
        self.current(pool)
        epoch = 0
        while True:
            table = await self._newer(pool, epoch)
            yield table
            epoch = table.epoch

    async def wait_complete(self) -> None:
        """Return once every pool has a table."""
        async with self._changed:
            await self._changed.wait_for(lambda: None not in self._tables.values())

    async def _newer(self, pool: str, epoch: int) -> Table:
        async with self._changed:
            while (table := self._tables[pool]) is None or table.epoch <= epoch:
                await self._changed.wait()
            return table
