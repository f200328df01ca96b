"""Decisions on hand-made signals: sizes, reasons, and an explanation of every hold."""

from dataclasses import replace

import pytest

from services.controller.scaling.deciding import Decision, decide, ticks_to_reach
from services.controller.scaling.history import History
from services.controller.scaling.rules import PartRules, PoolRules, ScalingRules
from services.controller.scaling.signals import Part, PodCounts, PoolSignals, Signals
from services.controller.scaling.steadying import Cause
from tests.unit.controller.pools import (
    COSTS,
    POOL,
    WINDOW_S,
    learnt,
    load,
    one,
    pods,
    rules,
)

NOW_S = 8 * WINDOW_S


def causes(decision: Decision, part: Part = Part.ATTENTION) -> list[Cause]:
    return [hold.cause for found in decision.parts if found.part == part for hold in found.holds]


def detail(decision: Decision) -> str:
    return " ".join(hold.detail for found in decision.parts for hold in found.holds)


def test_size_follows_offered_work_over_capacity_within_the_objective():
    decision = learnt(4, demand=2.8, chosen=rules())
    # A step of 0.1 s has 0.08 s for tokens: 2.8 / 0.8 / 0.7 = 5.
    assert decision.replicas("llm") == 5
    assert "work for 3.5 workers" in decision.parts[0].reason


def test_costs_are_told_apart_once_batches_vary():
    fitted = learnt(4, demand=2.0, chosen=rules()).history.pool("llm").fits.step_costs()
    assert fitted is not None
    assert fitted.fixed_s == pytest.approx(COSTS.fixed_s, rel=1e-3)
    assert fitted.work_s(400, 100) == pytest.approx(COSTS.work_s(400, 100), rel=1e-3)


def test_a_load_step_is_followed_within_the_stated_ticks():
    chosen, size = rules(), 2
    history = learnt(size, demand=1.0, chosen=chosen).history
    for tick in range(ticks_to_reach(size, 20)):
        seen = load(11.2, batch=6.0 + tick % 3)
        decision = decide(one(NOW_S + tick * WINDOW_S, pods(size), seen), chosen, history)
        history, size = decision.history, decision.replicas("llm")
    assert size == 20


def test_a_rising_demand_is_foreseen_over_the_start_of_a_worker():
    def last(trend: float) -> int:
        chosen = rules(pool={"start_s": 180.0})
        chosen = replace(chosen, pools=(replace(chosen.pools[0], trend=trend),))
        history = learnt(8, demand=2.0, chosen=chosen).history
        for tick in range(8):
            seen = load(2.0 + 0.2 * tick, batch=6.0 + tick % 3)
            decision = decide(one(NOW_S + tick * WINDOW_S, pods(8), seen), chosen, history)
            history = decision.history
        return decision.replicas("llm")

    assert last(1.0) > last(0.0)


def test_a_backlog_adds_workers_beyond_steady_demand():
    chosen = rules()
    before = learnt(4, demand=1.0, chosen=chosen)
    seen = load(1.0, running=128, waiting=200)
    decision = decide(one(NOW_S, pods(4), seen), chosen, before.history)
    assert decision.replicas("llm") > before.replicas("llm")
    assert "backlog" in decision.parts[0].reason


def test_full_kv_blocks_call_for_workers():
    chosen = rules()
    history = learnt(4, demand=0.5, chosen=chosen).history
    decision = decide(one(NOW_S, pods(4), load(0.5, kv_occupancy=1.0)), chosen, history)
    assert decision.replicas("llm") == 5
    assert "KV blocks 100%" in decision.parts[0].reason


def test_slow_tokens_call_for_one_more_worker_unless_one_starts():
    chosen = rules()
    history = learnt(4, demand=0.5, chosen=chosen).history
    slow = decide(one(NOW_S, pods(4), load(0.5), tpot_s=0.2), chosen, history)
    assert slow.replicas("llm") == 5
    assert "0.2 s a token" in slow.parts[0].reason
    starting = pods(4, desired=5, starting=1)
    waits = decide(one(NOW_S, starting, load(0.5), tpot_s=0.2), chosen, history)
    assert waits.replicas("llm") < 5


def test_late_first_tokens_call_for_one_more_worker_where_sequences_share_them():
    chosen = rules()
    history = learnt(4, demand=0.5, chosen=chosen).history
    assert history.pool("llm").fits.step_costs() is not None
    late = decide(one(NOW_S, pods(4), load(0.5, running=5), ttft_s=2.5), chosen, history)
    assert late.replicas("llm") == 5
    assert "2.5 s to the first token, the objective is 2 s, 5 sequ" in late.parts[0].reason
    for signals in (
        one(NOW_S, pods(4), load(0.5, running=4), ttft_s=2.5),
        one(NOW_S, pods(4), load(0.5, running=5), ttft_s=2.0),
        one(NOW_S, pods(4, desired=5, starting=1), load(0.5, running=5), ttft_s=2.5),
    ):
        assert decide(signals, chosen, history).replicas("llm") < 5


def test_latencies_grow_a_pool_whose_costs_are_not_known_yet_and_nothing_shrinks_it():
    late = one(0.0, pods(4), load(1.0, waiting=8, running=8), ttft_s=8.0)
    assert decide(late, rules(), History()).replicas("llm") == 8
    easy = one(0.0, pods(4), load(0.1), tpot_s=0.01)
    assert decide(easy, rules(), History()).replicas("llm") == 4
    idle = one(0.0, pods(4), load(0.0, running=0))
    assert decide(idle, rules(), History()).replicas("llm") == 1


def test_a_new_leader_without_memory_shrinks_nothing_before_a_window_has_passed():
    chosen = rules(down_window_s=60.0)
    idle = load(0.0, running=0)
    first = decide(one(0.0, pods(4), idle), chosen, History())
    assert first.replicas("llm") == 4
    assert causes(first) == [Cause.STABILISATION]
    assert decide(one(61.0, pods(4), idle), chosen, first.history).replicas("llm") == 1


def test_missing_metrics_hold_the_size_and_say_so():
    decision = decide(one(0.0, pods(4, reporting=0), None), rules(), History())
    assert decision.replicas("llm") == 4
    assert causes(decision) == [Cause.SIGNALS_MISSING]
    assert "None of 4 workers gave metrics" in detail(decision)


def test_a_worker_without_metrics_forbids_a_decrease_and_no_increase():
    chosen = rules()
    history = learnt(4, demand=0.5, chosen=chosen).history
    down = decide(one(NOW_S, pods(4, reporting=3), load(0.5)), chosen, history)
    assert down.replicas("llm") == 4
    assert causes(down) == [Cause.SIGNALS_PARTIAL]
    busy = learnt(4, demand=4.0, chosen=chosen).history
    up = decide(one(NOW_S, pods(4, reporting=3), load(4.0)), chosen, busy)
    assert up.replicas("llm") == 8


def test_a_pool_that_could_not_be_counted_keeps_its_place_in_the_budget():
    pools = (
        PoolRules("slm", PartRules(1, 8, gpus=1.0)),
        PoolRules("llm", PartRules(1, 8, gpus=1.0)),
    )
    chosen = ScalingRules(pools, max_gpus=8)
    steady = PoolSignals(pods(4), load(0.5), tpot_s=0.1)
    both = Signals(0.0, dict.fromkeys(("slm", "llm"), steady))
    history = decide(both, chosen, History()).history
    wanting = one(15.0, pods(4), load(6.0, waiting=90, running=3))
    decision = decide(wanting, chosen, history)
    assert decision.replicas("slm") == 4
    assert decision.replicas("llm") == 4
    assert set(causes(decision)) >= {Cause.SIGNALS_MISSING, Cause.BUDGET}


def test_unschedulable_pods_are_released_and_asked_for_again_later():
    chosen = rules(retry_s=300.0)
    history = learnt(6, demand=5.6, chosen=chosen).history
    stuck = pods(6, desired=10, unschedulable=4)
    decision = decide(one(NOW_S, stuck, load(5.6)), chosen, history)
    assert decision.replicas("llm") == 6
    assert Cause.UNSCHEDULABLE in causes(decision)
    assert "4 pending pods are released" in detail(decision)
    held = decide(one(NOW_S + 150, pods(6), load(5.6)), chosen, decision.history)
    assert held.replicas("llm") == 6
    assert "asked for again in 150 s" in detail(held)
    again = decide(one(NOW_S + 301, pods(6), load(5.6, batch=7)), chosen, held.history)
    assert again.replicas("llm") == 10


def test_a_smaller_size_waits_for_the_stabilisation_window():
    chosen = rules(down_window_s=60.0)
    history = learnt(5, demand=2.8, chosen=chosen).history
    seen = load(0.5)
    sizes = []
    for tick in range(24):
        decision = decide(one(NOW_S + tick * WINDOW_S, pods(5), seen), chosen, history)
        history = decision.history
        sizes.append(decision.replicas("llm"))
    assert sizes[0] == 5
    assert sizes[-1] == 1
    first = decide(one(NOW_S, pods(5), seen), chosen, learnt(5, demand=2.8, chosen=chosen).history)
    assert Cause.STABILISATION in causes(first)


def test_cool_downs_hold_and_name_the_time():
    chosen = rules(up_cool_down_s=60.0, down_cool_down_s=600.0)
    history = learnt(2, demand=5.6, chosen=chosen).history
    up = decide(one(NOW_S, pods(4), load(5.6)), chosen, history)
    assert causes(up)[-1] == Cause.UP_COOL_DOWN
    assert "60 s must lie between two" in detail(up)
    idle = decide(one(NOW_S, pods(20), load(5.6)), chosen, history)
    assert causes(idle) == [Cause.DOWN_COOL_DOWN]


def test_the_next_worker_leaves_only_when_the_last_has_drained():
    chosen = rules()
    history = learnt(4, demand=0.5, chosen=chosen).history
    decision = decide(one(NOW_S, pods(4, terminating=1), load(0.5)), chosen, history)
    assert decision.replicas("llm") == 4
    assert causes(decision) == [Cause.DRAINING]


def test_growth_takes_no_gpu_that_a_draining_worker_still_holds():
    chosen = rules(max_gpus=6)
    history = learnt(4, demand=5.6, chosen=chosen).history
    decision = decide(one(NOW_S, pods(4, terminating=2), load(5.6)), chosen, history)
    assert decision.replicas("llm") == 4
    assert causes(decision)[-1] == Cause.BUDGET
    free = decide(one(NOW_S, pods(4), load(5.6)), chosen, history)
    assert free.replicas("llm") == 6
    assert free.gpus == 6


def test_a_budget_of_money_binds_like_one_of_gpus():
    part = PartRules(1, 32, cost_per_hour=2.5)
    chosen = replace(rules(max_cost_per_hour=12.0), pools=(PoolRules("llm", part, **POOL),))
    history = learnt(4, demand=5.6, chosen=chosen).history
    decision = decide(one(NOW_S, pods(4), load(5.6)), chosen, history)
    assert decision.replicas("llm") == 4
    assert decision.cost_per_hour == 10.0
    assert Cause.BUDGET in causes(decision)


def test_a_lowered_budget_takes_workers_away():
    history = learnt(8, demand=5.0, chosen=rules()).history
    decision = decide(one(NOW_S, pods(8), load(5.0)), rules(max_gpus=5), history)
    assert decision.replicas("llm") == 5


def test_an_idle_pool_sleeps_and_a_held_request_wakes_it():
    chosen = rules(pool={"idle_s": 60.0})
    history, sizes = History(), []
    nothing = load(0.0, running=0)
    for tick in range(6):
        signals = one(tick * WINDOW_S, pods(1), nothing)
        decision = decide(signals, chosen, history)
        history = decision.history
        sizes.append(decision.replicas("llm"))
    assert sizes == [1, 1, 1, 1, 0, 0]
    assert "sleeps" in decision.parts[0].reason
    asleep = decide(one(200.0, pods(0), None), chosen, history)
    assert asleep.replicas("llm") == 0
    awake = decide(one(215.0, pods(0), None, held_requests=1), chosen, asleep.history)
    assert awake.replicas("llm") == 1


def test_a_pool_that_may_not_sleep_is_brought_back_from_zero():
    assert decide(one(0.0, pods(0), None), rules(), History()).replicas("llm") == 1


def test_workers_that_start_are_waited_for():
    counts = PodCounts(2, 0, starting=2)
    decision = decide(one(0.0, counts, None), rules(), History())
    assert decision.replicas("llm") == 2
    assert causes(decision) == [Cause.STARTING]
