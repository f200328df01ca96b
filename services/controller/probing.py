"""Looks after the expert workers: asks each again and again, and publishes who answered."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Protocol

from services.controller.metrics import ControllerMetrics
from services.controller.placement import Holding, PoolMembers, outsiders
from services.controller.tables import Tables
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
        self._holdings: dict[str, Holding] = {}
        self._unheard = set(members.replicas)

    async def run(self, interval_s: float) -> None:
        """Look after the pool for ever."""
        while True:
            await self.look()
            await asyncio.sleep(interval_s)

    async def look(self) -> None:
        """Ask every replica once and publish a newer table if anything changed.

        The first table waits until each replica has answered or left `MAX_FAILURES` looks
        unanswered, so that a controller that starts puts nobody out whom it could not reach once.
        """
        await asyncio.gather(*(self._ask(address) for address in self._members.replicas))
        if self._unheard and self._tables.current(self._members.pool) is None:
            return
        holdings = [
            self._holdings[address]
            for address in self._members.replicas
            if address in self._holdings
        ]
        table = await self._tables.update(self._members.pool, holdings)
        self._metrics.replicas.labels(pool=self._members.pool).set(len(holdings))
        if table is not None:
            self._metrics.epochs.labels(pool=self._members.pool).inc()
            self._report(table.epoch, holdings)

    async def _ask(self, address: str) -> None:
        try:
            holding = await self._prober.probe(address)
        except UnderstudyError as error:
            self._failures[address] += 1
            if self._failures[address] >= MAX_FAILURES:
                self._unheard.discard(address)
                if self._holdings.pop(address, None) is not None:
                    log.warning("The expert worker at %s left: %s", address, error.message)
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
