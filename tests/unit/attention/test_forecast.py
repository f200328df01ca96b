"""Forecasts: a line through the steps, and a lower bound of what comes first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.attention.forecast import MIN_STEPS, Backlog, StepCosts, outlook, tokens_ahead
from services.attention.sequence import Priority


def measured(fixed_s: float, per_token_s: float, sizes: list[int]) -> StepCosts:
    costs = StepCosts()
    for size in sizes:
        costs.note(size, fixed_s + per_token_s * size)
    return costs


def backlog(
    num_tokens: int,
    *,
    tenant: str = "a",
    priority: Priority = Priority.STANDARD,
    is_running: bool = False,
) -> Backlog:
    return Backlog(priority, tenant, num_tokens, is_running)


def test_nothing_is_forecast_before_enough_steps_were_measured():
    assert measured(0.1, 0.01, [1] * (MIN_STEPS - 1)).seconds(1, 1) is None


@given(
    fixed_s=st.floats(0.001, 1.0),
    per_token_s=st.floats(0.0, 0.1),
    sizes=st.lists(st.integers(1, 512), min_size=MIN_STEPS, max_size=80),
)
def test_steps_on_a_line_are_forecast_as_they_were(
    fixed_s: float, per_token_s: float, sizes: list[int]
):
    costs = measured(fixed_s, per_token_s, sizes)
    for size in sizes[-3:]:
        assert costs.seconds(1, size) == pytest.approx(fixed_s + per_token_s * size, rel=1e-2)


def test_steps_and_tokens_are_told_apart():
    costs = measured(0.01, 0.002, [1, 64, 256, 8] * 8)
    assert costs.seconds(10, 1000) == pytest.approx(10 * 0.01 + 1000 * 0.002, rel=1e-3)


def test_steps_of_one_size_are_all_fixed_cost():
    assert measured(0.01, 0.002, [4] * 20).seconds(2, 10**6) == pytest.approx(2 * 0.018)


def test_one_hiccup_is_no_trend():
    costs = measured(0.01, 0.0, [1] * 40)
    costs.note(1, 60.0)
    assert costs.seconds(1, 1) < 0.02


def test_costs_follow_a_machine_that_became_slower():
    costs = measured(0.01, 0.0, [1] * 40)
    for _ in range(200):
        costs.note(1, 0.03)
    assert costs.seconds(1, 1) == pytest.approx(0.03, rel=0.05)


def test_urgent_and_running_prompts_and_the_own_tenants_go_first():
    others = [
        backlog(100, tenant="b", priority=Priority.INTERACTIVE),
        backlog(30, tenant="b", is_running=True),
        backlog(7),
        backlog(900, priority=Priority.BATCH),
    ]
    assert tokens_ahead(backlog(50), others) == 100 + 30 + 7


def test_other_tenants_get_no_more_than_the_own_one_meanwhile():
    others = [backlog(1000, tenant="greedy"), backlog(20, tenant="modest")]
    assert tokens_ahead(backlog(50), others) == 50 + 20


def test_outlook_counts_prompt_steps_and_decodes():
    found = outlook(backlog(50), [backlog(70)], num_outputs=4, token_budget=16)
    assert (found.own_tokens, found.own_steps) == (53, 4 + 3)
    assert (found.ahead_tokens, found.ahead_steps) == (70, 4)
