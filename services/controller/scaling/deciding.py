"""`decide`: signals, rules and history in, replicas with reasons out. Pure: no clock, no network.

Per part: what the signals call for (needs), what holds a change back (steadying), then what the
budgets leave (budget). Every part gets a decision at every tick, also where nothing changes, and
every change that was not made says why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from services.controller.scaling.budget import Claim, share
from services.controller.scaling.history import RECENT_SAMPLES, History, PartHistory, PoolHistory
from services.controller.scaling.needs import (
    Need,
    attention_need,
    experts_need,
    fitted_ratio,
    observe,
)
from services.controller.scaling.rules import PartRules, PoolRules, ScalingRules
from services.controller.scaling.signals import Part, PodCounts, PoolSignals, Signals
from services.controller.scaling.steadying import UP_STEP, Cause, Hold, Wish, keep, steady


@dataclass(frozen=True, slots=True)
class PartDecision:
    """What one part of a pool gets."""

    pool: str
    part: Part
    before: int
    """Replicas that its workload asked for."""
    needed: int
    """Replicas that the signals call for."""
    replicas: int
    """Replicas decided."""
    reason: str
    """Why that many are needed, one sentence."""
    holds: tuple[Hold, ...] = ()
    """What was held back, and why."""
    ratio: float | None = None
    """Fitted attention workers to one expert worker; None while not known."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What all pools get at one moment."""

    at_s: float
    parts: tuple[PartDecision, ...]
    gpus: float
    """GPUs of the replicas decided."""
    cost_per_hour: float
    """Price of the replicas decided."""
    history: History
    """What to hand to the next decision."""

    def replicas(self, pool: str, part: Part = Part.ATTENTION) -> int:
        """Return the replicas of one part. Raises KeyError for one that was not decided on."""
        for one in self.parts:
            if one.pool == pool and one.part == part:
                return one.replicas
        raise KeyError((pool, part))


@dataclass(frozen=True, slots=True)
class _Draft:
    """A decision on one part before the budgets were asked."""

    rules: PartRules
    counts: PodCounts
    decision: PartDecision
    wish: Wish
    past: PartHistory


def decide(signals: Signals, rules: ScalingRules, history: History) -> Decision:
    """Return the replicas of every part of every pool of the rules."""
    drafts: list[_Draft] = []
    pools: dict[str, PoolHistory] = {}
    for pool in rules.pools:
        past, seen = history.pool(pool.name), signals.pools.get(pool.name)
        if seen is None:
            pools[pool.name] = past
            drafts += _unseen(pool, past)
        else:
            pools[pool.name] = observe(seen, signals.at_s, past)
            drafts += _drafts(pool, seen, rules, pools[pool.name], signals.at_s)
    sizes = share([_claim(draft) for draft in drafts], rules.max_gpus, rules.max_cost_per_hour)
    parts = tuple(map(_granted, drafts, sizes))
    return Decision(
        signals.at_s,
        parts,
        sum(draft.rules.gpus * size for draft, size in zip(drafts, sizes, strict=True)),
        sum(draft.rules.cost_per_hour * size for draft, size in zip(drafts, sizes, strict=True)),
        History(_remembered(pools, drafts, parts, signals)),
    )


def ticks_to_reach(replicas: int, needed: int) -> int:
    """Return the decisions within which a part reaches a steady need, nothing holding it back.

    Demand is believed once it fills the last few windows; sizes at most double or grow by four.
    """
    ticks = RECENT_SAMPLES
    while replicas < needed:
        replicas = max(2 * replicas, replicas + UP_STEP)
        ticks += 1
    return ticks


def _drafts(
    pool: PoolRules, seen: PoolSignals, rules: ScalingRules, past: PoolHistory, at_s: float
) -> list[_Draft]:
    idle = pool.idle_s is not None and (
        past.idle_since_s is not None and at_s - past.idle_since_s >= pool.idle_s
    )
    if idle or (pool.idle_s is not None and _sleeps(seen)):
        return _asleep(pool, seen, past)
    need = attention_need(seen, pool, past)
    attention = _draft(
        pool, Part.ATTENTION, pool.attention, seen.attention, need, rules, past, at_s,
        is_blind=seen.attention_load is None,
    )  # fmt: skip
    if pool.experts is None or seen.experts is None:
        return [attention]
    ratio = fitted_ratio(seen, past)
    wanted = experts_need(seen.experts, seen.experts_load, pool, ratio, attention.wish.replicas)
    experts = _draft(
        pool, Part.EXPERTS, pool.experts, seen.experts, wanted, rules, past, at_s,
        is_blind=seen.experts_load is None,
    )  # fmt: skip
    both = (attention, experts)
    return [replace(one, decision=replace(one.decision, ratio=ratio)) for one in both]


def _draft(
    pool: PoolRules,
    part: Part,
    part_rules: PartRules,
    counts: PodCounts,
    need: Need,
    rules: ScalingRules,
    past: PoolHistory,
    at_s: float,
    *,
    is_blind: bool,
) -> _Draft:
    before = past.part(part)
    needed, reason = need.replicas, need.reason
    if counts.ready and is_blind:
        wish = keep(
            counts, part_rules, Cause.SIGNALS_MISSING,
            f"None of {counts.ready} workers gave metrics; the size stays.",
        )  # fmt: skip
        needed, reason = wish.replicas, "The load is not known."
    elif not counts.ready and counts.starting and counts.desired >= part_rules.min_replicas:
        detail = f"{counts.starting} workers start and none serves yet; the size stays."
        wish = keep(counts, part_rules, Cause.STARTING, detail)
        needed, reason = wish.replicas, "No worker serves yet."
    else:
        wish, before = steady(needed, counts, part_rules, rules, before, at_s)
    decision = PartDecision(
        pool.name, part, counts.desired, needed, wish.replicas, reason, wish.holds
    )
    return _Draft(part_rules, counts, decision, wish, before)


def _sleeps(seen: PoolSignals) -> bool:
    return seen.attention.desired == 0 and not seen.held_requests


def _asleep(pool: PoolRules, seen: PoolSignals, past: PoolHistory) -> list[_Draft]:
    counts = {Part.ATTENTION: seen.attention, Part.EXPERTS: seen.experts}
    drafts: list[_Draft] = []
    for part, rules in pool.parts():
        pods = counts[part]
        if pods is not None:
            reason = f"No request for {pool.idle_s:g} s: the pool sleeps until one is held."
            decision = PartDecision(pool.name, part, pods.desired, 0, 0, reason)
            drafts.append(_Draft(rules, pods, decision, Wish(0, 0), past.part(part)))
    return drafts


def _unseen(pool: PoolRules, past: PoolHistory) -> list[_Draft]:
    """Keep a place in the budgets for a pool that could not be looked at."""
    drafts: list[_Draft] = []
    for part, rules in pool.parts():
        before = past.part(part)
        size = before.replicas if before.replicas is not None else rules.min_replicas
        detail = "The pool's pods could not be counted; the size stays."
        hold = Hold(Cause.SIGNALS_MISSING, detail)
        decision = PartDecision(
            pool.name, part, size, size, size, "The load is not known.", (hold,)
        )
        held = size if before.replicas is not None else rules.max_replicas
        floor = min(size, rules.min_replicas)
        drafts.append(_Draft(rules, PodCounts(size, held), decision, Wish(size, floor), before))
    return drafts


def _claim(draft: _Draft) -> Claim:
    counts, wish = draft.counts, draft.wish
    return Claim(
        floor=min(wish.floor, wish.replicas),
        wanted=wish.replicas,
        desired=counts.desired,
        live=max(counts.existing - counts.terminating, counts.desired),
        leaving=counts.terminating,
        gpus=draft.rules.gpus,
        cost_per_hour=draft.rules.cost_per_hour,
    )


def _granted(draft: _Draft, size: int) -> PartDecision:
    wanted = draft.wish.replicas
    if size == wanted:
        return replace(draft.decision, replicas=size)
    detail = f"{wanted} are wanted, the budgets leave {size} beside what exists and drains."
    holds = (*draft.decision.holds, Hold(Cause.BUDGET, detail))
    return replace(draft.decision, replicas=size, holds=holds)


def _remembered(
    pools: Mapping[str, PoolHistory],
    drafts: Sequence[_Draft],
    parts: Sequence[PartDecision],
    signals: Signals,
) -> dict[str, PoolHistory]:
    kept: dict[str, dict[Part, PartHistory]] = {name: {} for name in pools}
    for draft, part in zip(drafts, parts, strict=True):
        past = draft.past
        if part.pool in signals.pools:
            past = past.with_replicas(signals.at_s, part.before, part.replicas)
        kept[part.pool][part.part] = past
    return {name: replace(past, parts=kept[name]) for name, past in pools.items()}
