"""The scaling loop: look, decide, act, at every tick while this process leads."""

import logging
from collections.abc import Callable
from typing import Protocol

from services.controller.acting import Actor
from services.controller.demand import Demand
from services.controller.gathering import Sight
from services.controller.metrics import ScalingMetrics
from services.controller.scaling.deciding import Decision, decide
from services.controller.scaling.history import History
from services.controller.scaling.rules import ScalingRules

log = logging.getLogger(__name__)


class Looks(Protocol):
    """Looks at all pools."""

    async def look(self) -> Sight:
        """Return what is there now."""
        ...


class ScalingLoop:
    """Sizes all pools."""

    def __init__(
        self,
        rules: ScalingRules,
        looks: Looks,
        actor: Actor,
        demand: Demand,
        metrics: ScalingMetrics,
        is_leading: Callable[[], bool],
    ) -> None:
        self._rules = rules
        self._looks = looks
        self._actor = actor
        self._demand = demand
        self._metrics = metrics
        self._is_leading = is_leading
        self._history = History()
        self._last: Decision | None = None

    @property
    def last(self) -> Decision | None:
        """The last decision; None before the first, and while another controller leads."""
        return self._last if self._is_leading() else None

    async def run(self, interval_s: float) -> None:
        """Decide for ever; a request for a sleeping pool does not wait for the tick."""
        while True:
            await self.tick()
            await self._demand.wait(interval_s)

    async def tick(self) -> None:
        """Look, decide and act once; only look while another controller leads."""
        sight = await self._looks.look()
        self._metrics.leading.set(self._is_leading())
        if not self._is_leading():
            self._history, self._last = History(), None
            return
        decision = decide(sight.signals, self._rules, self._history)
        self._history, self._last = decision.history, decision
        await self._actor.apply(decision, sight.parts)
