"""Keeps pools equal to what discovery says: workers come, are watched, and go.

A worker that leaves the discovery (a pod that terminates) gets no new sequence and finishes those
it has; only then is its connection closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import aclosing
from typing import Protocol

from services.router.pools import Pool, Worker
from understudy.discovery import Discovery


class WatchedWorker(Worker, Protocol):
    """A worker with a connection to keep."""

    async def watch(self) -> None:
        """Keep the worker's state fresh until cancelled."""

    async def wait_idle(self) -> None:
        """Return once no sequence runs on it."""

    async def aclose(self) -> None:
        """Close the connection."""


logger = logging.getLogger(__name__)


class PoolWatch:
    """Fills one pool from one discovery; run it until cancelled."""

    def __init__(
        self, pool: Pool, discovery: Discovery, connect: Callable[[str], WatchedWorker]
    ) -> None:
        self._pool = pool
        self._discovery = discovery
        self._connect = connect
        self._workers: dict[str, tuple[WatchedWorker, asyncio.Task[None]]] = {}
        self._leaving: dict[asyncio.Task[None], WatchedWorker] = {}

    async def run(self) -> None:
        """Follow the discovery; closes every connection at the end."""
        try:
            async with aclosing(self._discovery):
                async for endpoints in self._discovery.watch():
                    self._follow({endpoint.address for endpoint in endpoints})
                await asyncio.Event().wait()  # a static list has no news; its workers still live
        finally:
            self._follow(())
            await self._close_all()

    def _follow(self, addresses: Collection[str]) -> None:
        for address in addresses:
            if address not in self._workers:
                worker = self._connect(address)
                self._workers[address] = worker, asyncio.create_task(worker.watch())
                self._pool.workers[address] = worker
        for address in [known for known in self._workers if known not in addresses]:
            worker, watching = self._workers.pop(address)
            del self._pool.workers[address]
            logger.info(
                "A worker left the pool.", extra={"pool": self._pool.name, "worker": address}
            )
            watching.cancel()
            leaving = asyncio.create_task(_leave(worker, watching))
            self._leaving[leaving] = worker
            leaving.add_done_callback(self._leaving.pop)

    async def _close_all(self) -> None:
        leaving = dict(self._leaving)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        for worker in leaving.values():
            await worker.aclose()


async def _leave(worker: WatchedWorker, watching: asyncio.Task[None]) -> None:
    """Let the worker finish what it has, and close its connection."""
    await asyncio.gather(watching, return_exceptions=True)
    await worker.wait_idle()
    await worker.aclose()
