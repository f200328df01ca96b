"""Caps and budgets refuse with the limit named and a delay that is long enough."""

from __future__ import annotations

import pytest

from services.router.admission import Budget, Slots
from understudy.errors import ResourceExhausted


def test_slots_are_given_back_even_after_a_failure() -> None:
    slots = Slots(1, "requests")
    with pytest.raises(KeyError), slots.hold():
        raise KeyError
    with slots.hold():
        assert slots.num_held == 1
        with pytest.raises(ResourceExhausted) as caught, slots.hold():
            pass
    assert caught.value.metadata["limit"] == "requests"
    assert slots.num_held == 0


def test_budget_allows_its_burst_and_then_its_rate() -> None:
    now = 0.0
    budget = Budget(2.0, "escalations", lambda: now)
    for _ in range(4):
        budget.spend()
    with pytest.raises(ResourceExhausted) as caught:
        budget.spend()
    assert caught.value.retry_after_s == pytest.approx(0.5)
    now = 0.5
    budget.spend()
    with pytest.raises(ResourceExhausted):
        budget.spend()
    now = 1000.0
    for _ in range(4):
        budget.spend()


def test_a_small_budget_still_allows_one() -> None:
    budget = Budget(0.01, "escalations", lambda: 0.0)
    budget.spend()
    with pytest.raises(ResourceExhausted) as caught:
        budget.spend()
    assert caught.value.retry_after_s == pytest.approx(100.0)
