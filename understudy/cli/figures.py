"""What an evaluation says about its answers: pure arithmetic over outcomes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from understudy.cli.traffic import Outcome
from understudy.workloads.metrics import figures as quality_of


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures over `n` rows; shares lie in [0, 1], costs are in units of one LLM position.

    `cost_ratio_to_llm_only` compares with the router's estimate for the LLM alone from a cold
    start, or with the LLM arm where one was run beside it. Failed rows count as wrong.
    """

    n: int
    exact_match: float
    tool_accuracy: float
    slot_f1: float
    schema_valid: float
    answered_by_slm: float
    cost: float
    cost_ratio_to_llm_only: float
    p50_s: float
    p99_s: float
    failed: int


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference of two shares with its 95 % interval."""

    difference: float
    low: float
    high: float


def evaluate(outcomes: Sequence[Outcome], llm_only: Sequence[Outcome] | None = None) -> Evaluation:
    """Compute the figures of one arm; `llm_only` is the LLM arm over the same rows."""
    quality = quality_of((outcome.call, outcome.row.gold) for outcome in outcomes)
    decisions = [outcome.decision for outcome in outcomes if outcome.decision is not None]
    cost = sum((decision.cost for decision in decisions), 0.0)
    if llm_only is None:
        alone = sum(d.cost / d.cost_ratio for d in decisions if d.cost_ratio > 0)
    else:
        alone = sum(outcome.decision.cost for outcome in llm_only if outcome.decision is not None)
    durations = sorted(o.duration_s for o in outcomes if o.decision is not None)
    by_slm = sum(decision.pool == "slm" for decision in decisions)
    return Evaluation(
        n=quality.num_rows,
        exact_match=quality.exact_match,
        tool_accuracy=quality.tool_accuracy,
        slot_f1=quality.slot_f1,
        schema_valid=quality.schema_valid,
        answered_by_slm=by_slm / max(len(outcomes), 1),
        cost=cost,
        cost_ratio_to_llm_only=cost / alone if alone else 0.0,
        p50_s=percentile(durations, 0.5),
        p99_s=percentile(durations, 0.99),
        failed=len(outcomes) - len(decisions),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile of sorted values; 0 where there are none."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def paired_interval(ours: Sequence[bool], theirs: Sequence[bool]) -> Interval:
    """Return the difference of two shares over the same rows with its paired 95 % interval.

    Newcombe's square-and-add of Wilson intervals with the pairs' correlation (Statistics in
    Medicine 17, 1998, 2635, method 10): sound for few disagreements and for shares near 1.
    """
    n = len(ours)
    assert n == len(theirs) > 0, "the same rows in both arms"
    first, second = sum(ours) / n, sum(theirs) / n
    low_1, high_1 = _wilson(first, n)
    low_2, high_2 = _wilson(second, n)
    phi = _correlation(ours, theirs)
    below = _joined(first - low_1, high_2 - second, phi)
    above = _joined(high_1 - first, second - low_2, phi)
    return Interval(first - second, first - second - below, first - second + above)


def _wilson(share: float, n: int) -> tuple[float, float]:
    z = NormalDist().inv_cdf(0.975)
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return (centre - spread) / scale, (centre + spread) / scale


def _correlation(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    pairs = list(zip(ours, theirs, strict=True))
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    only_ours, only_theirs = pairs.count((True, False)), pairs.count((False, True))
    margins = (both + only_ours) * (only_theirs + neither)
    margins *= (both + only_theirs) * (only_ours + neither)
    if margins == 0:
        return 0.0
    cross = float(both * neither - only_ours * only_theirs)
    if cross > 0:
        cross = max(cross - len(pairs) / 2, 0.0)
    return cross / math.sqrt(margins)


def _joined(first: float, second: float, phi: float) -> float:
    return math.sqrt(max(first**2 - 2 * phi * first * second + second**2, 0.0))
