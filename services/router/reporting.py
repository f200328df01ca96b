"""Tells the controller what is held, and brings back what becomes of the pools.

At once when something is held that was not before, soon after when that changes (the controller
decides after it was told), then every ten seconds; once more when nothing is held any longer. A
controller that is away costs the wake-up and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import aclosing
from typing import Final, Protocol

from services.router.holding import Holding, Outlook
from services.router.metrics import RouterMetrics
from understudy.errors import UnderstudyError

INTERVAL_S: Final = 10.0
"""Longest time between two reports while anything is held."""
LEAST_PAUSE_S: Final = 1.0
"""Shortest time between two reports, whatever changes."""

logger = logging.getLogger(__name__)


class Controller(Protocol):
    """Whoever wakes pools."""

    async def report(self, held: Mapping[str, int]) -> Mapping[str, Outlook]:
        """Take requests by pool, return what becomes of those pools that are sized.

        Raises the named error of a report that nobody took.
        """

    async def aclose(self) -> None:
        """Close connections."""


class Reporter:
    """Reports what a router holds; run it until cancelled."""

    def __init__(self, holding: Holding, controller: Controller, metrics: RouterMetrics) -> None:
        self._holding = holding
        self._controller = controller
        self._metrics = metrics
        self._is_away = False

    async def run(self) -> None:
        """Report for ever; closes the connections at the end."""
        has_told, pause_s = False, LEAST_PAUSE_S
        async with aclosing(self._controller):
            while True:
                await self._holding.wait(pause_s - LEAST_PAUSE_S if has_told else None)
                counts = self._holding.counts()
                is_holding = any(counts.values())
                if not is_holding and not has_told:
                    continue
                pause_s = min(2 * pause_s, INTERVAL_S) if has_told else LEAST_PAUSE_S
                has_told = is_holding
                await self._tell(counts)
                await asyncio.sleep(LEAST_PAUSE_S)

    async def _tell(self, counts: Mapping[str, int]) -> None:
        try:
            outlooks = await self._controller.report(counts)
        except UnderstudyError as error:
            self._metrics.reports.labels("failed").inc()
            if not self._is_away:
                logger.warning(
                    "No controller takes what is held; sleeping pools are not woken.",
                    extra={"reason": error.reason, "cause": error.message},
                )
            self._is_away = True
            return
        self._metrics.reports.labels("taken").inc()
        if self._is_away:
            logger.info("A controller takes what is held again.")
        self._is_away = False
        self._holding.learn(outlooks)
