"""What is held for pools without workers, and how long: over a clock that the test turns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from services.router.holding import EXPIRY_S, RETURN_S, Hold, Holding, Outlook, Patience
from services.router.metrics import RouterMetrics
from understudy.errors import ResourceExhausted, Unavailable

PATIENCE = Patience(worker_s=60.0, waking_s=300.0)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def outlook(replicas: int = 1, ready: int = 0, start_s: float = 100.0) -> Outlook:
    return Outlook(replicas, ready, "Because.", start_s)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def holding(clock: Clock) -> Holding:
    return Holding(RouterMetrics(CollectorRegistry()), clock, draw=lambda: 0.0)


@pytest.fixture
def hold(holding: Holding) -> Iterator[Hold]:
    with holding.hold("llm", PATIENCE) as made:
        yield made


def test_counts_follow_the_requests_and_stay_known_at_zero(holding: Holding) -> None:
    with holding.hold("llm", PATIENCE), holding.hold("llm", PATIENCE):
        assert holding.counts() == {"llm": 2}
    assert holding.counts() == {"llm": 0}


def test_a_pool_that_was_asked_for_counts_until_then(holding: Holding, clock: Clock) -> None:
    holding.want("slm", 10.0)
    holding.want("slm", 1.0)
    assert holding.counts() == {"slm": 1}
    clock.now_s += 10.0
    assert holding.counts() == {"slm": 0}


def test_the_time_left_counts_from_when_the_pool_was_first_said_to_wake(
    holding: Holding, clock: Clock
) -> None:
    holding.learn({"llm": outlook(replicas=0)})
    clock.now_s += 1
    holding.learn({"llm": outlook()})
    clock.now_s += 10
    holding.learn({"llm": outlook()})
    assert holding.left_s("llm") == 90
    clock.now_s += 100
    holding.learn({"llm": outlook()})
    assert holding.left_s("llm") == 0


@pytest.mark.parametrize(
    ("between", "pause_s"), [(outlook(ready=1), 1.0), (outlook(replicas=0), 1.0), (None, 101.0)]
)
def test_another_awakening_counts_anew(
    holding: Holding, clock: Clock, between: Outlook | None, pause_s: float
) -> None:
    holding.learn({"llm": outlook()})
    clock.now_s += pause_s
    if between is not None:
        holding.learn({"llm": between})
    holding.learn({"llm": outlook()})
    assert holding.left_s("llm") == 100


def test_a_wait_without_news_ends_with_the_patience(hold: Hold, clock: Clock) -> None:
    clock.now_s += 59
    hold.check(1000)
    clock.now_s += 1
    with pytest.raises(Unavailable, match="within 60 s"):
        hold.check(1000)


def test_old_news_is_no_news(holding: Holding, hold: Hold, clock: Clock) -> None:
    holding.learn({"llm": outlook()})
    clock.now_s += 60
    assert holding.outlook("llm") is None
    assert EXPIRY_S < 60
    with pytest.raises(Unavailable):
        hold.check(1000)


def test_a_wait_for_a_pool_that_wakes_ends_with_deadline_or_setting(
    holding: Holding, hold: Hold, clock: Clock
) -> None:
    holding.learn({"llm": outlook(replicas=0)})
    holding.learn({"llm": outlook()})
    hold.check(100)
    with pytest.raises(ResourceExhausted) as caught:
        hold.check(99)
    assert caught.value.retry_after_s == 100
    clock.now_s += 290
    holding.learn({"llm": outlook(start_s=5)})
    hold.check(1000)
    clock.now_s += 10
    with pytest.raises(ResourceExhausted) as caught:
        hold.check(1000)
    assert caught.value.retry_after_s == RETURN_S


def test_a_pool_that_lost_its_last_worker_is_waited_for_like_any_other(
    holding: Holding, hold: Hold, clock: Clock
) -> None:
    holding.learn({"llm": outlook(ready=1)})
    holding.learn({"llm": outlook(start_s=180)})
    hold.check(119)
    clock.now_s += 59
    holding.learn({"llm": outlook(start_s=180)})
    hold.check(60)
    clock.now_s += 1
    with pytest.raises(ResourceExhausted) as caught:
        hold.check(59)
    assert caught.value.retry_after_s == 120


def test_a_refused_caller_is_waited_for(holding: Holding, hold: Hold, clock: Clock) -> None:
    holding.learn({"llm": outlook(replicas=0)})
    holding.learn({"llm": outlook()})
    with pytest.raises(ResourceExhausted):
        hold.check(1)
    assert holding.counts() == {"llm": 2}
    clock.now_s += 100 + RETURN_S
    assert holding.counts() == {"llm": 1}


def delays(clock: Clock, start_s: float, *drawn: float) -> list[float]:
    """What callers of a pool that wakes are told, one for each number drawn."""
    numbers = iter(drawn)
    holding = Holding(RouterMetrics(CollectorRegistry()), clock, draw=lambda: next(numbers))
    found = []
    for _ in drawn:
        with holding.hold("llm", PATIENCE) as hold:
            holding.learn({"llm": outlook(replicas=0)})
            holding.learn({"llm": outlook(start_s=start_s)})
            with pytest.raises(ResourceExhausted) as caught:
                hold.check(1)
        found.append(caught.value.retry_after_s)
        assert f"try again in {caught.value.retry_after_s:.0f} s" in caught.value.message
    return found


def test_callers_are_told_different_times_within_bounds_and_none_before_the_worker_is_there(
    clock: Clock,
) -> None:
    assert delays(clock, 100, 0.0, 0.5, 1.0) == [100, 112.5, 125]
    assert delays(clock, 1000, 0.0, 1.0) == [1000, 1030]


def test_a_caller_that_was_told_a_later_time_is_waited_for_until_then(clock: Clock) -> None:
    holding = Holding(RouterMetrics(CollectorRegistry()), clock, draw=lambda: 1.0)
    with holding.hold("llm", PATIENCE) as hold:
        holding.learn({"llm": outlook(replicas=0)})
        holding.learn({"llm": outlook()})
        with pytest.raises(ResourceExhausted):
            hold.check(1)
    clock.now_s += 124 + RETURN_S
    assert holding.counts() == {"llm": 1}
    clock.now_s += 1
    assert holding.counts() == {"llm": 0}


def test_a_wait_that_another_pool_can_end_is_short_whatever_wakes(
    holding: Holding, clock: Clock
) -> None:
    holding.learn({"slm": outlook(start_s=3)})
    with holding.hold("slm", Patience(worker_s=2.0, waking_s=0.0)) as hold:
        clock.now_s += 2
        with pytest.raises(Unavailable):
            hold.check(1000)


def test_a_pool_with_workers_that_nobody_reaches_is_waited_for_as_long_as_any(
    holding: Holding, hold: Hold, clock: Clock
) -> None:
    holding.learn({"llm": outlook(ready=1)})
    hold.check(1)
    clock.now_s += 60
    holding.learn({"llm": outlook(ready=1)})
    with pytest.raises(Unavailable):
        hold.check(1000)
