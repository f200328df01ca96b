"""An endpoint that fails rests, longer each time, and is forgiven by one success."""

from __future__ import annotations

from services.router.external.breaker import LONGEST_REST_S, Breaker


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_rests_double_and_end_with_a_success() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(2):
        breaker.fail()
    assert not breaker.is_resting
    for rest_s in (1.0, 2.0, 4.0):
        breaker.fail()
        clock.now_s += rest_s - 0.01
        assert breaker.is_resting
        clock.now_s += 0.02
        assert not breaker.is_resting
    breaker.succeed()
    breaker.fail()
    assert not breaker.is_resting


def test_failures_of_one_moment_count_once_and_rests_are_bounded() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(300):
        breaker.fail()
    clock.now_s = 1.01
    assert not breaker.is_resting
    for _ in range(50):
        breaker.fail()
        clock.now_s += LONGEST_REST_S + 0.01
    assert not breaker.is_resting
