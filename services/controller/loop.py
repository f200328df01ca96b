"""The scaling loop: look, decide, act, at every tick while this process leads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from services.controller.acting import Actor
from services.controller.demand import Demand
from services.controller.gathering import Sight
from services.controller.metrics import ScalingMetrics
from services.controller.scaling.deciding import Decision, decide
from services.controller.scaling.history import History
from services.controller.scaling.rules import ScalingRules
from services.controller.scaling.signals import Part
from understudy.errors import Unavailable


class Looks(Protocol):
    """Looks at all pools."""

    async def look(self) -> Sight:
        """Return what is there now."""
        ...


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a pool has and gets."""

    replicas: int
    ready: int
    reason: str
    start_s: float


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
        self._last: tuple[Sight, Decision] | None = None

    async def run(self, interval_s: float) -> None:
        """Decide for ever; a request for a sleeping pool does not wait for the tick."""
        while True:
            await self.tick()
            await self._demand.wait(interval_s)

    async def tick(self) -> None:
        """Look, decide and act once; only look while another controller leads."""
        sight = await self._looks.look()
        is_leading = self._is_leading()
        self._metrics.leading.set(is_leading)
        if not is_leading:
            self._history, self._last = History(), None
            return
        decision = decide(sight.signals, self._rules, self._history)
        self._history, self._last = decision.history, (sight, decision)
        await self._actor.apply(decision, sight.parts)

    def report(self, router: str, held: Mapping[str, int]) -> dict[str, Outlook]:
        """Take what a router holds; return what becomes of these pools.

        Raises Unavailable while another controller leads.
        """
        if not self._is_leading():
            raise Unavailable("Another controller leads; report to that one.")
        self._demand.report(router, held)
        if self._last is None:
            return {}
        sight, decision = self._last
        starts = {pool.name: pool.start_s for pool in self._rules.pools}
        return {
            one.pool: Outlook(
                one.replicas,
                sight.signals.pools[one.pool].attention.ready,
                " ".join([one.reason, *(hold.detail for hold in one.holds)]),
                starts[one.pool],
            )
            for one in decision.parts
            if one.part is Part.ATTENTION and one.pool in held and one.pool in sight.signals.pools
        }
