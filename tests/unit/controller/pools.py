"""Pools, rules and loads for tests of scaling: workers with known costs under known demand."""

from dataclasses import replace

from services.controller.scaling.costs import StepCosts
from services.controller.scaling.deciding import Decision, decide
from services.controller.scaling.history import History
from services.controller.scaling.rules import PartRules, PoolRules, ScalingRules
from services.controller.scaling.signals import (
    AttentionLoad,
    ExpertsLoad,
    PodCounts,
    PoolSignals,
    Signals,
)

WINDOW_S = 15.0
COSTS = StepCosts(fixed_s=0.02, prefill_s=0.0005, decode_s=0.001)
PROMPT, OUTPUT = 400, 100
POOL = {"ttft_s": 2.0, "tpot_s": 0.1, "utilisation": 0.7, "trend": 0.0}


def rules(**changes) -> ScalingRules:
    """Return rules of one pool "llm" of 1 to 32 one-GPU workers, without waits."""
    pool_changes = changes.pop("pool", {})
    pool = PoolRules("llm", PartRules(1, 32, gpus=1.0), **{**POOL, **pool_changes})
    return ScalingRules(
        **{"pools": (pool,), "up_cool_down_s": 0.0, "down_cool_down_s": 0.0,
           "down_window_s": 0.0, **changes}
    )  # fmt: skip


def load(demand: float, batch: float = 8.0, **changes) -> AttentionLoad:
    """Return the window of workers that do `demand` worker seconds of work a second."""
    work_s = COSTS.work_s(PROMPT, OUTPUT)
    ended = demand * WINDOW_S / work_s
    steps = ended * OUTPUT / batch
    tokens = {"prefill_tokens": ended * PROMPT, "decode_tokens": ended * OUTPUT}
    found = AttentionLoad(
        WINDOW_S,
        running=8,
        steps=steps,
        step_s=steps * COSTS.fixed_s + demand * WINDOW_S,
        ended=ended,
        **tokens,
    )
    return replace(found, **changes)


def experts_load(busy: float, frames: float = 1000.0, **changes) -> ExpertsLoad:
    """Return the window of expert workers that compute `busy` workers' worth of time."""
    found = ExpertsLoad(WINDOW_S, frames=frames, rows=frames * 8, compute_s=busy * WINDOW_S)
    return replace(found, **changes)


def pods(size: int, **changes) -> PodCounts:
    """Return a part whose workers are all ready and read."""
    return replace(PodCounts(size, size, reporting=size), **changes)


def one(at_s: float, counts: PodCounts, seen: AttentionLoad | None, **more) -> Signals:
    """Return signals of the pool "llm"."""
    return Signals(at_s, {"llm": PoolSignals(counts, seen, **more)})


def learnt(size: int, demand: float, chosen: ScalingRules, num_ticks: int = 8) -> Decision:
    """Return the last decision after `num_ticks` with this demand; its history knows the costs."""
    history = History()
    for tick in range(num_ticks):
        # The batch varies, or the fixed cost of a step could not be told from that of tokens.
        seen = load(demand, batch=6.0 + tick % 3)
        decision = decide(one(tick * WINDOW_S, pods(size), seen), chosen, history)
        history = decision.history
    return decision
