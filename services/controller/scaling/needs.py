"""How many workers the signals call for, before anything holds a change back.

Attention workers are sized by work, not by how busy they look: an engine with one sequence is as
busy as one with thirty. Work is what prompts and outputs cost beside the fixed cost of steps,
fitted online; what arrives is the change of sequences in flight plus those that ended.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

from services.controller.scaling.costs import StepCosts, best_ratio
from services.controller.scaling.history import PoolHistory
from services.controller.scaling.rules import PoolRules
from services.controller.scaling.signals import AttentionLoad, ExpertsLoad, PodCounts, PoolSignals

MAX_STEP: Final = 2.0
"""Largest factor by which one look at latencies or waits changes a size."""
MIN_OWN_SHARE: Final = 0.1
"""Least share of a step that counts as the attention worker's own."""
ROUNDING: Final = 0.02
"""Part of a worker that no further one is asked for."""


@dataclass(frozen=True, slots=True)
class Need:
    """A number of workers, and the sentence that says why."""

    replicas: int
    reason: str

    def at_least(self, other: "Need | None") -> "Need":
        """Return the greater of two."""
        return self if other is None or other.replicas <= self.replicas else other


def observe(signals: PoolSignals, at_s: float, past: PoolHistory) -> PoolHistory:
    """Return the history after these signals: fits, demand, idleness."""
    load, experts = signals.attention_load, signals.experts_load
    fits = past.fits
    if load is not None:
        fits = fits.with_attention(load)
    if experts is not None:
        fits = fits.with_experts(experts)
    now = replace(past, fits=fits)
    now = replace(now, idle_since_s=_idle_since(signals, at_s, past))
    if load is None:
        return replace(now, in_flight=None)
    costs = fits.step_costs()
    in_flight = load.running + load.waiting
    if costs is not None:
        work_s = costs.work_s(load.prefill_tokens, load.decode_tokens)
        grown = in_flight - (in_flight if past.in_flight is None else past.in_flight)
        now = now.with_work(work_s, max(load.ended + grown / 2, 0.0))
        if load.window_s > 0:
            # What arrived is what was done, and what sequences in flight grew by.
            offered = max(work_s + grown * now.sequence_s, 0.0) / load.window_s
            now = now.with_demand(at_s, offered)
    return replace(now, in_flight=in_flight)


def attention_need(signals: PoolSignals, rules: PoolRules, past: PoolHistory) -> Need:
    """Return how many attention workers a pool with a readable load calls for."""
    load, ready = signals.attention_load, signals.attention.ready
    if load is None or ready == 0:
        size = rules.attention.min_replicas
        return Need(size, f"{size} is the smallest size; no worker is there to be read.")
    costs = past.fits.step_costs()
    if costs is not None and past.demand:
        need = _by_work(load, ready, rules, past, costs)
    else:
        need = _by_latency(signals, load, ready, rules)
    for other in (
        _by_blocks(load, ready, rules),
        _by_pace(signals, rules),
        _by_first_token(signals, load, rules),
    ):
        need = need.at_least(other)
    return need


def experts_need(
    counts: PodCounts, load: ExpertsLoad | None, rules: PoolRules, ratio: float | None, size: int
) -> Need:
    """Return how many expert workers are needed beside `size` attention workers."""
    least = Need(rules.experts.min_replicas if rules.experts else 1, "the smallest size")
    if ratio is not None:
        wanted = math.ceil(size / (ratio * (1 + rules.ratio_tolerance)) - ROUNDING)
        least = least.at_least(
            Need(wanted, f"{size} attention workers at the fitted {ratio:.3g} to one expert worker")
        )
    if load is None or counts.ready == 0 or load.window_s <= 0:
        return least
    busy = load.compute_s / load.window_s
    tokens = f"{load.rows_per_frame:.3g} tokens a frame"
    own = Need(
        math.ceil(busy / rules.experts_utilisation - ROUNDING),
        f"{busy:.3g} workers' worth of computing at {tokens}, "
        f"{rules.experts_utilisation:.0%} of each wanted",
    )
    if load.mean_wait_s > rules.queue_wait_s and counts.starting == 0:
        factor = min(load.mean_wait_s / rules.queue_wait_s, MAX_STEP)
        own = own.at_least(
            Need(
                math.ceil(counts.ready * factor),
                f"frames wait {load.mean_wait_s:.3g} s for a worker, {rules.queue_wait_s:g} s is "
                f"the objective, {tokens}",
            )
        )
    return least.at_least(own)


def fitted_ratio(signals: PoolSignals, past: PoolHistory) -> float | None:
    """Return the best attention workers to one expert worker; None while it is not known."""
    load, experts, counts = signals.attention_load, signals.experts_load, signals.experts
    found = past.fits.frame_costs()
    if load is None or experts is None or counts is None or found is None:
        return None
    if experts.frames < 1 or load.steps < 1 or experts.rows <= 0 or counts.ready == 0:
        return None
    away_s = (experts.compute_s + experts.queue_wait_s) / counts.ready
    own_s = max(load.step_s - away_s, load.step_s * MIN_OWN_SHARE)
    ratio = best_ratio(
        own_s / experts.frames, experts.rows_per_frame, found[0], found[1], counts.ready
    )
    return ratio if math.isfinite(ratio) and ratio > 0 else None


def _idle_since(signals: PoolSignals, at_s: float, past: PoolHistory) -> float | None:
    load = signals.attention_load
    if signals.held_requests or (load is None and signals.attention.ready):
        return None
    if load is not None and (load.running or load.waiting or load.ended or load.steps):
        return None
    return at_s if past.idle_since_s is None else past.idle_since_s


def _by_work(
    load: AttentionLoad, ready: int, rules: PoolRules, past: PoolHistory, costs: StepCosts
) -> Need:
    level, slope = past.level_and_slope()
    foreseen = min(level + max(slope, 0.0) * rules.trend * rules.start_s, level * MAX_STEP)
    capacity = costs.capacity(rules.tpot_s)
    excess = max(load.running + load.waiting - ready * _concurrency(load, rules, costs), 0.0)
    backlog = excess * past.sequence_s / rules.backlog_s
    wanted = (foreseen + backlog) / (capacity * rules.utilisation)
    return Need(
        max(math.ceil(wanted - ROUNDING), 1),
        f"work for {level / capacity:.3g} workers at {rules.tpot_s:g} s a token, "
        f"{foreseen / capacity:.3g} in {rules.start_s:g} s, backlog {backlog / capacity:.3g}, "
        f"{rules.utilisation:.0%} of each wanted",
    )


def _concurrency(load: AttentionLoad, rules: PoolRules, costs: StepCosts) -> float:
    """Return the sequences that a worker advances within the objective, in the present mix."""
    if load.decode_tokens <= 0:
        return 1.0
    a_token_s = costs.work_s(load.prefill_tokens, load.decode_tokens) / load.decode_tokens
    return max(rules.tpot_s * costs.capacity(rules.tpot_s) / a_token_s, 1.0) if a_token_s else 1.0


def _by_latency(signals: PoolSignals, load: AttentionLoad, ready: int, rules: PoolRules) -> Need:
    """Without known costs: grow with the worse of both latencies, shrink only when idle."""
    tpot = (signals.tpot_s or 0.0) / rules.tpot_s
    # A long prompt alone exceeds the objective too; more workers help where somebody waits.
    ttft = (signals.ttft_s or 0.0) / rules.ttft_s if load.waiting else 0.0
    queue = load.waiting / max(load.running, 1)
    stress = max(tpot, ttft, 1.0 + queue if load.waiting else 0.0)
    least = 1 if load.steps == load.running == load.waiting == 0 else ready
    wanted = math.ceil(ready * min(stress, MAX_STEP) - ROUNDING)
    return Need(
        max(wanted, least),
        f"latencies at {stress:.3g} of the objectives, {load.waiting} sequences waiting, costs of "
        "a step not known yet",
    )


def _by_blocks(load: AttentionLoad, ready: int, rules: PoolRules) -> Need:
    wanted = math.ceil(ready * load.kv_occupancy / rules.kv_occupancy - ROUNDING)
    return Need(
        wanted, f"KV blocks {load.kv_occupancy:.0%} in use, {rules.kv_occupancy:.0%} is the bound"
    )


def _by_pace(signals: PoolSignals, rules: PoolRules) -> Need | None:
    """A measured breach that the fitted costs did not foresee: one more, then look again."""
    counts, tpot_s = signals.attention, signals.tpot_s
    if tpot_s is None or tpot_s <= rules.tpot_s or counts.starting:
        return None
    return Need(counts.ready + 1, f"{tpot_s:.3g} s a token, the objective is {rules.tpot_s:g} s")


def _by_first_token(signals: PoolSignals, load: AttentionLoad, rules: PoolRules) -> Need | None:
    """A measured breach while sequences share workers: one more, then look again.

    A prompt that has a worker to itself exceeds the objective by its length alone, and no further
    worker would read it sooner.
    """
    counts, ttft_s = signals.attention, signals.ttft_s
    in_flight = load.running + load.waiting
    if ttft_s is None or ttft_s <= rules.ttft_s or in_flight <= counts.ready or counts.starting:
        return None
    return Need(
        counts.ready + 1,
        f"{ttft_s:.3g} s to the first token, the objective is {rules.ttft_s:g} s, {in_flight} "
        f"sequences on {counts.ready} workers",
    )
