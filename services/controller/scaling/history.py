"""What a decision remembers of those before it: plain data, handed on from tick to tick."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from services.controller.scaling.costs import Fits
from services.controller.scaling.signals import Part

NEVER: Final = float("-inf")
DEMAND_WINDOW_S: Final = 300.0
"""How much of the past demand level and trend are read from."""
MIN_TREND_SAMPLES: Final = 4
RECENT_SAMPLES: Final = 4
"""Windows whose mean and most bound what a line through all of them says of demand now."""
FORGETTING: Final = 0.95
"""Weight of a window one tick later in the mean work of a sequence."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """A size for which the scheduler found no node."""

    ceiling: int
    """Workers that it did find nodes for."""
    until_s: float
    """When to ask for more again."""


@dataclass(frozen=True, slots=True)
class PartHistory:
    """One part of a pool."""

    replicas: int | None = None
    """Replicas decided last."""
    needs: tuple[tuple[float, int], ...] = ()
    """When how many were needed, within the stabilisation window."""
    last_up_s: float = NEVER
    last_down_s: float = NEVER
    blocked: Blocked | None = None

    def with_need(self, at_s: float, need: int, window_s: float, size: int) -> "PartHistory":
        """Remember a need and forget those that left the window.

        Who remembers nothing, such as a new leader, takes the present size for needed.
        """
        needs = self.needs or ((at_s, size),)
        kept = tuple(one for one in needs if one[0] > at_s - window_s)
        return replace(self, needs=(*kept, (at_s, need)))

    def with_replicas(self, at_s: float, before: int, after: int) -> "PartHistory":
        """Remember what was decided."""
        return replace(
            self,
            replicas=after,
            last_up_s=at_s if after > before else self.last_up_s,
            last_down_s=at_s if after < before else self.last_down_s,
        )


@dataclass(frozen=True, slots=True)
class PoolHistory:
    """One pool."""

    parts: Mapping[Part, PartHistory] = field(default_factory=dict)
    fits: Fits = field(default_factory=Fits.empty)
    demand: tuple[tuple[float, float], ...] = ()
    """When how much work was offered, in worker seconds a second."""
    in_flight: int | None = None
    """Sequences running and waiting at the last tick."""
    work_s: float = 0.0
    """Work of the last windows in worker seconds, fading."""
    sequences: float = 0.0
    """Sequences that this work was for, fading: ended ones, and half of what is in flight more."""
    idle_since_s: float | None = None
    """Since when there has been no request; None while there is one."""

    def part(self, part: Part) -> PartHistory:
        """Return what is remembered of a part."""
        return self.parts.get(part, PartHistory())

    @property
    def sequence_s(self) -> float:
        """Mean work of one sequence in worker seconds; 0 while not known."""
        return self.work_s / self.sequences if self.sequences > 0 else 0.0

    def with_work(self, work_s: float, sequences: float) -> "PoolHistory":
        """Remember the work of a window and the sequences that it was for."""
        return replace(
            self,
            work_s=FORGETTING * self.work_s + work_s,
            sequences=FORGETTING * self.sequences + sequences,
        )

    def with_demand(self, at_s: float, demand: float) -> "PoolHistory":
        """Remember demand and forget what left the window."""
        kept = tuple(one for one in self.demand if one[0] > at_s - DEMAND_WINDOW_S)
        return replace(self, demand=(*kept, (at_s, demand)))

    def level_and_slope(self) -> tuple[float, float]:
        """Return demand now and its change a second, by a straight line through the window.

        The level lies between the mean and the most of the last windows: a line lags behind a
        step at first, and shoots over it later.
        """
        if not self.demand:
            return 0.0, 0.0
        num = len(self.demand)
        mean = sum(value for _, value in self.demand) / num
        if num < MIN_TREND_SAMPLES:
            return mean, 0.0
        now_s = self.demand[-1][0]
        middle_s = sum(at_s for at_s, _ in self.demand) / num
        spread = sum((at_s - middle_s) ** 2 for at_s, _ in self.demand)
        if spread <= 0:
            return mean, 0.0
        rise = sum((at_s - middle_s) * (value - mean) for at_s, value in self.demand)
        slope = rise / spread
        recent = [value for _, value in self.demand[-RECENT_SAMPLES:]]
        level = max(mean + slope * (now_s - middle_s), sum(recent) / len(recent))
        return min(level, max(recent)), slope


@dataclass(frozen=True, slots=True)
class History:
    """All pools."""

    pools: Mapping[str, PoolHistory] = field(default_factory=dict)

    def pool(self, name: str) -> PoolHistory:
        """Return what is remembered of a pool."""
        return self.pools.get(name, PoolHistory())
