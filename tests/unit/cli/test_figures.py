"""What an evaluation says about its answers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.cli.figures import evaluate, paired_interval, percentile
from understudy.cli.traffic import Outcome
from understudy.client import Decision, DecisionReason
from understudy.workloads import ToolCall
from understudy.workloads.snips.dataset import Row

GOLD = ToolCall("GetWeather", {"city": "Oslo"})
ROW = Row("weather in oslo", GOLD)


def decision(pool: str, cost: float, cost_ratio: float = 1.0) -> Decision:
    return Decision(
        pool=pool,
        reason=DecisionReason.SLM_ACCEPTED,
        workload="snips",
        threshold=0.5,
        attempts=(),
        cost=cost,
        cost_ratio=cost_ratio,
        trace_id="",
        is_resumable=True,
    )


def outcome(pool: str, cost: float, call: ToolCall | None, duration_s: float = 1.0) -> Outcome:
    return Outcome(ROW, call, decision(pool, cost, cost_ratio=cost / 40), duration_s)


FAILED = Outcome(ROW, None, None, 9.0, "It broke.")


def test_figures_of_a_mixed_arm() -> None:
    right = ToolCall("GetWeather", {"city": " OSLO "})
    wrong = ToolCall("GetWeather", {"city": "Bergen"})
    arm = [
        outcome("slm", 4.0, right, 0.1),
        outcome("llm", 44.0, wrong, 0.3),
        outcome("slm", 4.0, None, 0.2),
        FAILED,
    ]
    figures = evaluate(arm)
    assert (figures.n, figures.failed) == (4, 1)
    assert (figures.exact_match, figures.tool_accuracy, figures.schema_valid) == (0.25, 0.5, 0.5)
    assert figures.answered_by_slm == 0.5
    assert figures.cost == 52.0
    assert figures.cost_ratio_to_llm_only == pytest.approx(52 / 120)
    assert (figures.p50_s, figures.p99_s) == (0.2, 0.3)


def test_the_ratio_is_measured_where_the_llm_was_asked_too() -> None:
    arm = [outcome("slm", 4.0, GOLD)]
    alone = [outcome("llm", 32.0, GOLD)]
    assert evaluate(arm, alone).cost_ratio_to_llm_only == 4.0 / 32.0
    assert evaluate(alone, alone).cost_ratio_to_llm_only == 1.0


def test_an_arm_that_only_failed_has_figures() -> None:
    figures = evaluate([FAILED])
    assert (figures.failed, figures.exact_match, figures.cost, figures.p50_s) == (1, 0.0, 0.0, 0.0)


def test_percentiles_are_nearest_ranks() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.99) == 4.0
    assert percentile([1.0], 0.0) == 1.0


def pairs(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    ours = [True] * (both + first) + [False] * (second + neither)
    theirs = [True] * both + [False] * first + [True] * second + [False] * neither
    return ours, theirs


def test_the_interval_is_newcombes_published_one() -> None:
    # Newcombe 1998, table II: a = 36, b = 12, c = 2, d = 0, method 10.
    interval = paired_interval(*pairs(36, 12, 2, 0))
    assert interval.difference == pytest.approx(0.2)
    assert (interval.low, interval.high) == pytest.approx((0.0569, 0.3404), abs=5e-5)


def test_arms_that_never_disagree_still_have_width() -> None:
    interval = paired_interval(*pairs(90, 0, 0, 10))
    assert interval.difference == 0.0
    assert interval.low < 0.0 < interval.high


counts = st.integers(0, 50)


@given(counts, counts, counts, counts)
def test_an_interval_holds_its_difference_and_mirrors(a: int, b: int, c: int, d: int) -> None:
    if a + b + c + d == 0:
        return
    interval = paired_interval(*pairs(a, b, c, d))
    mirrored = paired_interval(*pairs(a, c, b, d))
    assert -1 - 1e-9 <= interval.low <= interval.difference + 1e-9
    assert interval.difference - 1e-9 <= interval.high <= 1 + 1e-9
    assert math.isclose(interval.low, -mirrored.high, abs_tol=1e-9)
