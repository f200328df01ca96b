"""Decisions for pools of attention and expert workers: ratio, frames that wait, one budget."""

from dataclasses import replace

from services.controller.scaling.deciding import decide
from services.controller.scaling.history import History
from services.controller.scaling.rules import PartRules, PoolRules, ScalingRules
from services.controller.scaling.signals import Part, PoolSignals, Signals
from tests.unit.controller.pools import POOL, WINDOW_S, experts_load, load, pods, rules

NOW_S = 8 * WINDOW_S


def afd(**changes) -> ScalingRules:
    return rules(pools=(PoolRules(
        "llm", PartRules(1, 32, gpus=1.0), PartRules(1, 32, gpus=1.0), **{**POOL, **changes}),
    ))  # fmt: skip


def afd_signals(
    at_s: float, attention: int, experts: int, demand: float, base: float = 1000.0, **more
) -> Signals:
    frames = base + 100 * (at_s // WINDOW_S % 5)
    fields = {"frames": frames, "rows": frames * (6 + at_s // WINDOW_S % 4), **more}
    compute_s = frames * 0.001 + fields["rows"] * 0.0005
    seen = PoolSignals(
        pods(attention),
        load(demand, batch=6.0 + at_s // WINDOW_S % 3),
        pods(experts),
        experts_load(compute_s / WINDOW_S, **fields),
    )
    return Signals(at_s, {"llm": seen})


def test_experts_follow_attention_at_the_fitted_ratio():
    history, chosen = History(), afd(ratio_tolerance=0.0, experts_utilisation=1.0)
    for tick in range(12):
        decision = decide(afd_signals(tick * WINDOW_S, 8, 2, 5.6, 9000.0), chosen, history)
        history = decision.history
    attention, experts = decision.parts
    assert attention.replicas == 10
    assert experts.ratio is not None
    assert 1 < experts.ratio < 9
    assert experts.replicas == -(-attention.replicas // experts.ratio)
    assert "fitted" in experts.reason


def test_frames_that_wait_call_for_expert_workers():
    history, chosen = History(), afd(ratio_tolerance=4.0)
    for tick in range(8):
        decision = decide(afd_signals(tick * WINDOW_S, 2, 2, 1.0), chosen, history)
        history = decision.history
    late = afd_signals(NOW_S, 2, 2, 1.0, queue_wait_s=40.0)
    after = decide(late, chosen, history)
    assert after.replicas("llm", Part.EXPERTS) > decision.replicas("llm", Part.EXPERTS)
    assert "frames wait" in after.parts[1].reason
    assert "tokens a frame" in after.parts[1].reason


def test_both_parts_of_a_pool_share_what_a_budget_leaves():
    history, chosen = History(), replace(afd(), max_gpus=9)
    for tick in range(12):
        decision = decide(afd_signals(tick * WINDOW_S, 2, 1, 8.0, 9000.0), chosen, history)
        history = decision.history
    attention, experts = decision.parts
    assert decision.gpus <= 9
    assert experts.replicas >= 2
    assert attention.replicas >= 4
