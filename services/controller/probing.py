"""Looks after the expert workers: asks each again and again, and publishes who answered."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final, Protocol

from services.controller.metrics import ControllerMetrics
from services.controller.placement import Holding, PoolMembers, outsiders
from services.controller.tables import Tables
from understudy.discovery import Discovery, open_discovery
from understudy.errors import UnderstudyError
from understudy.serving import HealthState

MAX_FAILURES: Final = 2
"""Unanswered looks after which a replica leaves; one may be lost to a busy machine."""
log = logging.getLogger(__name__)


class Prober(Protocol):
    """Asks one expert worker."""

    async def probe(self, address: str) -> Holding | None:
        """Return what it holds, None when it is there and takes no work.

        Raises UnderstudyError when it does not answer.
        """
        ...

    async def forget(self, address: str) -> None:
        """Hang up on a worker that is gone."""
        ...


class PoolKeeper:
    """Keeps the table of one pool true."""

    def __init__(
        self, members: PoolMembers, prober: Prober, tables: Tables, metrics: ControllerMetrics
    ) -> None:
        self._members = members
        self._prober = prober
        self._tables = tables
        self._metrics = metrics
        self._failures = dict.fromkeys(members.replicas, 0)
        """By address, in the order of the table: these are the members."""
        self._holdings: dict[str, Holding] = {}
        self._unheard = set(members.replicas)
        self._is_told = not members.discovery

    def tasks(self, interval_s: float) -> list[Callable[[], Awaitable[None]]]:
        """Return what has to run beside the server."""
        tasks: list[Callable[[], Awaitable[None]]] = [partial(self.run, interval_s)]
        if self._members.discovery:
            tasks.append(partial(self.follow, open_discovery(self._members.discovery)))
        return tasks

    async def run(self, interval_s: float) -> None:
        """Look after the pool for ever."""
        while True:
            await self.look()
            await asyncio.sleep(interval_s)

    async def follow(self, discovery: Discovery) -> None:
        """Keep the members equal to what a discovery tells, for ever.

        Who is newly told is asked at the next look; who is told no longer leaves at once.
        """
        async with aclosing(discovery):
            async for endpoints in discovery.watch():
                addresses = sorted(endpoint.address for endpoint in endpoints)
                gone = self._failures.keys() - addresses
                self._unheard = self._unheard - gone | (set(addresses) - self._failures.keys())
                self._is_told = True
                self._failures = {one: self._failures.get(one, 0) for one in addresses}
                for address in gone:
                    self._holdings.pop(address, None)
                    await self._prober.forget(address)
                await self._publish()

    async def look(self) -> None:
        """Ask every replica once and publish a newer table if anything changed."""
        await asyncio.gather(*(self._ask(address) for address in tuple(self._failures)))
        await self._publish()

    async def _publish(self) -> None:
        """Publish what is known.

        The first table waits until the members are known and each has answered or left
        `MAX_FAILURES` looks unanswered, so that a controller that starts puts nobody out whom it
        could not reach once.
        """
        if (self._unheard or not self._is_told) and self._tables.current(
            self._members.pool
        ) is None:
            return
        members = tuple(self._failures)
        holdings = [self._holdings[one] for one in members if one in self._holdings]
        table = await self._tables.update(self._members.pool, holdings)
        self._metrics.replicas.labels(pool=self._members.pool).set(len(holdings))
        if table is not None:
            self._metrics.epochs.labels(pool=self._members.pool).inc()
            self._report(table.epoch, holdings)

    async def _ask(self, address: str) -> None:
        try:
            holding = await self._prober.probe(address)
        except UnderstudyError as error:
            if address not in self._failures:  # it left meanwhile
                return
            self._failures[address] += 1
            if self._failures[address] >= MAX_FAILURES:
                self._unheard.discard(address)
                if self._holdings.pop(address, None) is not None:
                    log.warning("The expert worker at %s left: %s", address, error.message)
            return
        if address not in self._failures:
            return
        self._failures[address] = 0
        self._unheard.discard(address)
        if holding is None:
            self._holdings.pop(address, None)
        else:
            self._holdings[address] = holding

    def _report(self, epoch: int, holdings: Sequence[Holding]) -> None:
        addresses = ", ".join(holding.address for holding in holdings) or "nobody"
        log.info("Epoch %d of pool %s is held by %s.", epoch, self._members.pool, addresses)
        for address in outsiders(holdings):
            log.error(
                "The expert worker at %s holds another model than the first of pool %s and is "
                "left out; give all of them the same weights.",
                address,
                self._members.pool,
            )


async def announce(tables: Tables, health: HealthState) -> None:
    """Say that the controller serves once every pool has a table."""
    await tables.wait_complete()
    health.mark_ready()
