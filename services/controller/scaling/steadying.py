"""What holds a change back: each rule returns a size and, where it held something, why."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from services.controller.scaling.history import Blocked, PartHistory
from services.controller.scaling.rules import PartRules, ScalingRules
from services.controller.scaling.signals import PodCounts

UP_FACTOR: Final = 2
UP_STEP: Final = 4
"""A part at most doubles, or grows by four, in one decision."""


class Cause(StrEnum):
    """Why something was held back."""

    SIGNALS_MISSING = "signals_missing"
    SIGNALS_PARTIAL = "signals_partial"
    STARTING = "starting"
    BOUNDS = "bounds"
    UNSCHEDULABLE = "unschedulable"
    STEP = "step"
    UP_COOL_DOWN = "up_cool_down"
    STABILISATION = "stabilisation"
    DOWN_COOL_DOWN = "down_cool_down"
    DRAINING = "draining"
    BUDGET = "budget"


@dataclass(frozen=True, slots=True)
class Hold:
    """A change that was not made, in part or at all."""

    cause: Cause
    detail: str
    """One sentence with the figures."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What one part would like, on its way through the rules."""

    replicas: int
    floor: int
    holds: tuple[Hold, ...] = ()

    def to(self, replicas: int, cause: Cause, detail: str) -> "Wish":
        """Change the size and say why; no word where nothing changes."""
        if replicas == self.replicas:
            return self
        return replace(self, replicas=replicas, holds=(*self.holds, Hold(cause, detail)))


def steady(
    need: int,
    counts: PodCounts,
    part: PartRules,
    rules: ScalingRules,
    past: PartHistory,
    at_s: float,
) -> tuple[Wish, PartHistory]:
    """Pass a need through bounds, unschedulable pods, paces and drains."""
    past = past.with_need(at_s, need, rules.down_window_s, counts.desired)
    past = replace(past, blocked=_blocked(counts, rules, past, at_s))
    wish = _within_bounds(Wish(need, part.min_replicas), part)
    wish = _within_window(wish, counts, part, past)
    wish = _below_ceiling(wish, counts, past, at_s)
    if wish.replicas > counts.desired:
        wish = _grown(wish, counts, rules, past, at_s)
    elif wish.replicas < counts.desired:
        wish = _shrunk(wish, counts, part, rules, past, at_s)
    return wish, past


def keep(counts: PodCounts, part: PartRules, cause: Cause, detail: str) -> Wish:
    """Hold a part at its size because nobody knows better."""
    size = min(max(counts.desired, part.min_replicas), part.max_replicas)
    return Wish(size, part.min_replicas, (Hold(cause, detail),))


def _blocked(
    counts: PodCounts, rules: ScalingRules, past: PartHistory, at_s: float
) -> Blocked | None:
    if counts.unschedulable:
        return Blocked(counts.ready + counts.starting, at_s + rules.retry_s)
    blocked = past.blocked
    return blocked if blocked is not None and at_s < blocked.until_s else None


def _within_bounds(wish: Wish, part: PartRules) -> Wish:
    size = min(max(wish.replicas, part.min_replicas), part.max_replicas)
    if size > wish.replicas:
        return replace(wish, replicas=size)
    detail = f"{wish.replicas} are needed, max_replicas is {part.max_replicas}."
    return wish.to(size, Cause.BOUNDS, detail)


def _within_window(wish: Wish, counts: PodCounts, part: PartRules, past: PartHistory) -> Wish:
    most = min(max(need for _, need in past.needs), part.max_replicas)
    size = max(wish.replicas, min(most, counts.desired))
    return wish.to(
        size,
        Cause.STABILISATION,
        f"{wish.replicas} would do now, {most} were needed within the stabilisation window.",
    )


def _below_ceiling(wish: Wish, counts: PodCounts, past: PartHistory, at_s: float) -> Wish:
    blocked = past.blocked
    if blocked is None:
        return wish
    ceiling = max(blocked.ceiling, counts.ready + counts.starting, wish.floor)
    return wish.to(
        min(wish.replicas, ceiling),
        Cause.UNSCHEDULABLE,
        f"{wish.replicas} are wanted, the scheduler finds nodes for {ceiling}; "
        f"{counts.unschedulable} pending pods are released and more is asked for again in "
        f"{blocked.until_s - at_s:.0f} s.",
    )


def _grown(
    wish: Wish, counts: PodCounts, rules: ScalingRules, past: PartHistory, at_s: float
) -> Wish:
    waited_s = at_s - past.last_up_s
    if waited_s < rules.up_cool_down_s and counts.desired >= wish.floor:
        return wish.to(
            counts.desired,
            Cause.UP_COOL_DOWN,
            f"{wish.replicas} are wanted, the last increase was {waited_s:.0f} s ago and "
            f"{rules.up_cool_down_s:g} s must lie between two.",
        )
    size = min(wish.replicas, max(counts.desired * UP_FACTOR, counts.desired + UP_STEP, wish.floor))
    return wish.to(
        size, Cause.STEP, f"{wish.replicas} are wanted, one decision goes from {counts.desired} to "
        f"{size} at most.",
    )  # fmt: skip


def _shrunk(
    wish: Wish,
    counts: PodCounts,
    part: PartRules,
    rules: ScalingRules,
    past: PartHistory,
    at_s: float,
) -> Wish:
    if past.blocked is not None and counts.unschedulable:
        return wish  # pods that never ran are given back at once
    size = min(counts.desired, part.max_replicas)
    if counts.terminating:
        return wish.to(
            size, Cause.DRAINING, f"{counts.terminating} workers still drain; the next leave after "
            "them.",
        )  # fmt: skip
    if 0 < counts.ready > counts.reporting:
        missing = counts.ready - counts.reporting
        return wish.to(
            size, Cause.SIGNALS_PARTIAL,
            f"{missing} of {counts.ready} workers gave no metrics; nothing is taken away unseen.",
        )  # fmt: skip
    waited_s = at_s - max(past.last_up_s, past.last_down_s)
    if waited_s < rules.down_cool_down_s:
        return wish.to(
            size, Cause.DOWN_COOL_DOWN,
            f"{wish.replicas} would do, the last change was {waited_s:.0f} s ago and "
            f"{rules.down_cool_down_s:g} s must lie before a decrease.",
        )  # fmt: skip
    return wish
