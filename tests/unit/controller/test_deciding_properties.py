"""Properties of decisions over generated histories of signals."""

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from services.controller.scaling.deciding import Decision, decide, ticks_to_reach
from services.controller.scaling.history import History
from services.controller.scaling.needs import ROUNDING
from services.controller.scaling.rules import PartRules, PoolRules, ScalingRules
from services.controller.scaling.signals import (
    AttentionLoad,
    ExpertsLoad,
    Part,
    PodCounts,
    PoolSignals,
    Signals,
)
from tests.unit.controller.pools import (
    POOL,
    WINDOW_S,
    experts_load,
    learnt,
    load,
    one,
    pods,
    rules,
)

HISTORIES_PER_EXAMPLE = 100
EXAMPLES = 100
"""Together 10,000 histories."""
TICKS = (1, 2, 3, 6)


def some_rules(rng: random.Random) -> ScalingRules:
    pools = []
    for name in ("slm", "llm", "big")[: rng.randint(1, 3)]:
        experts = None
        if rng.random() < 0.5:
            experts = PartRules(rng.randint(1, 2), rng.randint(2, 16), gpus=rng.choice((0, 1, 2)))
        attention = PartRules(
            rng.randint(1, 2), rng.randint(2, 32), rng.choice((0, 1, 4)), rng.uniform(0, 9)
        )
        idle_s = rng.choice((None, 30.0))
        pools.append(PoolRules(name, attention, experts, idle_s=idle_s, trend=rng.random()))
    least = sum(p.min_replicas * p.gpus for pool in pools for _, p in pool.parts())
    cost = sum(p.min_replicas * p.cost_per_hour for pool in pools for _, p in pool.parts())
    return ScalingRules(
        tuple(pools),
        max_gpus=least + rng.randint(0, 24),
        max_cost_per_hour=cost + rng.uniform(0, 200),
        up_cool_down_s=rng.choice((0.0, 15.0, 60.0)),
        down_cool_down_s=rng.choice((0.0, 60.0)),
        down_window_s=rng.choice((0.0, 60.0, 300.0)),
    )


def some_counts(rng: random.Random, desired: int) -> PodCounts:
    ready = rng.randint(0, desired + 2)
    return PodCounts(
        desired if rng.random() < 0.9 else rng.randint(0, 40),
        ready,
        starting=rng.choice((0, 0, rng.randint(0, 6))),
        unschedulable=rng.choice((0, 0, 0, rng.randint(1, 5))),
        terminating=rng.choice((0, 0, rng.randint(0, 5))),
        reporting=rng.choice((ready, rng.randint(0, ready))),
    )


def some_pool(rng: random.Random, rules: PoolRules, last: dict[Part, int]) -> PoolSignals:
    scale = 10 ** rng.uniform(-2, 4)
    attention_load = AttentionLoad(
        WINDOW_S, rng.randint(0, 400), rng.choice((0, rng.randint(0, 1000))), rng.random(),
        steps=scale, step_s=scale * rng.random(), prefill_tokens=scale * rng.uniform(0, 99),
        decode_tokens=scale * rng.uniform(0, 9), ended=scale * rng.random(),
    )  # fmt: skip
    experts_load = ExpertsLoad(
        WINDOW_S, scale, scale * rng.uniform(0, 64), scale * rng.random(), scale * rng.random()
    )
    return PoolSignals(
        some_counts(rng, last.get(Part.ATTENTION, 1)),
        attention_load if rng.random() < 0.9 else None,
        some_counts(rng, last.get(Part.EXPERTS, 1)) if rules.experts else None,
        experts_load if rules.experts and rng.random() < 0.9 else None,
        ttft_s=rng.choice((None, rng.uniform(0, 9))),
        tpot_s=rng.choice((None, rng.uniform(0, 1))),
        held_requests=rng.choice((0, 0, rng.randint(0, 50))),
    )


def occupied(rules: ScalingRules, signals: Signals, sizes: dict[tuple[str, Part], int]) -> float:
    """GPUs of what exists or is asked for, or of `sizes` where they are more."""
    total = 0.0
    for pool in rules.pools:
        seen = signals.pools[pool.name]
        for part, part_rules in pool.parts():
            counts = seen.attention if part is Part.ATTENTION else seen.experts
            assert counts is not None
            live = max(counts.existing - counts.terminating, counts.desired)
            live = max(live, sizes.get((pool.name, part), 0))
            total += part_rules.gpus * (live + counts.terminating)
    return total


def check_budgets(rules: ScalingRules, signals: Signals, decision: Decision) -> None:
    assert decision.gpus <= rules.max_gpus + 1e-6
    assert decision.cost_per_hour <= rules.max_cost_per_hour + 1e-6
    priced = {(pool.name, part): limits for pool in rules.pools for part, limits in pool.parts()}
    gpus = sum(priced[one.pool, one.part].gpus * one.replicas for one in decision.parts)
    assert gpus == decision.gpus
    for found in decision.parts:
        assert 0 <= found.replicas <= priced[found.pool, found.part].max_replicas
        assert found.reason
        if found.replicas < found.needed:
            assert found.holds, found
        assert all(hold.detail.endswith(".") for hold in found.holds)
    if len(signals.pools) == len(rules.pools):
        sizes = {(one.pool, one.part): one.replicas for one in decision.parts}
        before = occupied(rules, signals, {})
        assert occupied(rules, signals, sizes) <= max(rules.max_gpus, before) + 1e-6


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_no_history_of_signals_makes_a_decision_exceed_a_budget(seed):
    rng = random.Random(seed)
    for _ in range(HISTORIES_PER_EXAMPLE):
        chosen, history, at_s = some_rules(rng), History(), 0.0
        last: dict[str, dict[Part, int]] = {}
        for _ in range(rng.choice(TICKS)):
            at_s += rng.choice((0.0, WINDOW_S, 400.0))
            signals = Signals(at_s, {
                pool.name: some_pool(rng, pool, last.get(pool.name, {}))
                for pool in chosen.pools if rng.random() < 0.95
            })  # fmt: skip
            decision = decide(signals, chosen, history)
            check_budgets(chosen, signals, decision)
            history = decision.history
            for found in decision.parts:
                last.setdefault(found.pool, {})[found.part] = found.replicas


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 8),
    before=st.floats(0.1, 2.0),
    demand=st.floats(0.2, 15.0),
    start_ticks=st.integers(0, 12),
)
def test_the_needed_size_is_reached_within_the_stated_ticks(size, before, demand, start_ticks):
    chosen = rules()
    history = learnt(size, before, chosen).history
    asked, needed = [size], math.ceil(demand / (0.8 * 0.7) - 2 * ROUNDING)
    for tick in range(ticks_to_reach(size, needed)):
        at_s = (8 + tick) * WINDOW_S
        seen = load(demand, batch=6.0 + tick % 3)
        decision = decide(one(at_s, growing(asked, start_ticks), seen), chosen, history)
        history = decision.history
        asked.append(decision.replicas("llm"))
    assert asked[-1] >= needed


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 8), busy=st.floats(0.2, 15.0), start_ticks=st.integers(0, 12))
def test_the_needed_expert_workers_are_there_within_the_stated_ticks(size, busy, start_ticks):
    chosen = rules(pools=(afd_pool(1, 1),))
    history, asked = learnt(4, 1.0, chosen).history, [size]
    needed = math.ceil(busy / chosen.pools[0].experts_utilisation - 2 * ROUNDING)
    for tick in range(ticks_to_reach(size, needed)):
        experts = growing(asked, start_ticks)
        seen = load(1.0, batch=6.0 + tick % 3)
        pool = PoolSignals(pods(4), seen, experts, experts_load(busy, 1000.0 + 100 * (tick % 5)))
        decision = decide(Signals((8 + tick) * WINDOW_S, {"llm": pool}), chosen, history)
        history = decision.history
        asked.append(decision.replicas("llm", Part.EXPERTS))
    assert asked[-1] >= needed


@settings(max_examples=60, deadline=None)
@given(
    least=st.integers(1, 4),
    least_experts=st.integers(1, 4),
    held=st.integers(1, 50),
    demand=st.floats(0.2, 15.0),
    start_ticks=st.integers(0, 12),
)
def test_a_pool_wakes_in_one_tick_and_grows_within_the_stated_ones_once_it_serves(
    least, least_experts, held, demand, start_ticks
):
    chosen = rules(pools=(afd_pool(least, least_experts, idle_s=60.0),))
    history, at_s = learnt(least, 1.0, chosen).history, 1000.0

    def look(attention, experts, seen=None):
        nonlocal history, at_s
        at_s += WINDOW_S
        pool = PoolSignals(attention, seen, experts, held_requests=0 if seen else held)
        decision = decide(Signals(at_s, {"llm": pool}), chosen, history)
        history = decision.history
        return decision.replicas("llm"), decision.replicas("llm", Part.EXPERTS)

    smallest = (least, least_experts)
    assert look(pods(0), pods(0)) == smallest
    for _ in range(start_ticks):
        starting = [PodCounts(size, 0, starting=size) for size in smallest]
        assert look(*starting) == smallest

    asked, needed = [least], math.ceil(demand / (0.8 * 0.7) - 2 * ROUNDING)
    for tick in range(ticks_to_reach(least, needed)):
        seen = load(demand, batch=6.0 + tick % 3)
        asked.append(look(growing(asked, start_ticks), pods(least_experts), seen)[0])
    assert asked[-1] >= needed


def afd_pool(least: int, least_experts: int, **changes) -> PoolRules:
    attention, experts = (PartRules(size, 32, gpus=1.0) for size in (least, least_experts))
    return PoolRules("llm", attention, experts, **{**POOL, **changes})


def growing(asked: list[int], start_ticks: int) -> PodCounts:
    """Return a part whose workers serve so many ticks after they were asked for."""
    desired = asked[-1]
    ready = min(asked[max(len(asked) - 1 - start_ticks, 0)], desired)
    return pods(ready, desired=desired, starting=desired - ready)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 30), demand=st.floats(0.2, 8.0))
def test_a_steady_demand_ends_at_the_needed_size_and_stays(size, demand):
    chosen = rules(down_window_s=120.0, down_cool_down_s=30.0, up_cool_down_s=15.0)
    decision, history = None, History()
    sizes = [size]
    for tick in range(60):
        seen = load(demand, batch=6.0 + tick % 3)
        decision = decide(one(tick * WINDOW_S, pods(sizes[-1]), seen), chosen, history)
        history = decision.history
        sizes.append(decision.replicas("llm"))
    assert len(set(sizes[-20:])) == 1
    assert sizes[-1] == decision.parts[0].needed
