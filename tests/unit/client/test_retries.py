"""When the client tries again, and how long it waits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy import (
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    RetryPolicy,
    Unavailable,
    UnderstudyError,
)
from understudy.client.retries import Tries


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def tries(clock: Clock, policy: RetryPolicy | None = None, timeout_s: float = 60.0) -> Tries:
    return Tries(
        policy or RetryPolicy(),
        timeout_s=timeout_s,
        request_id="r1",
        clock=clock,
        draw=lambda: 0.5,
    )


@given(failures=st.integers(1, 10_000), draw=st.floats(0, 1, exclude_max=True))
def test_a_wait_stays_between_half_the_backoff_and_its_cap(failures: int, draw: float) -> None:
    policy = RetryPolicy(initial_backoff_s=0.1, max_backoff_s=5.0)
    delay_s = policy.delay_s(failures, Unavailable("away"), draw)
    assert 0.05 <= delay_s <= 5.0


def test_waits_double_until_the_cap() -> None:
    policy = RetryPolicy(initial_backoff_s=1.0, max_backoff_s=5.0)
    waits = [policy.delay_s(n, Unavailable("away"), 1.0) for n in (1, 2, 3, 4)]
    assert waits == [1.0, 2.0, 4.0, 5.0]


def test_the_servers_retry_delay_is_the_least_wait() -> None:
    error = ResourceExhausted("full", retry_after_s=7.5)
    assert RetryPolicy().delay_s(1, error, 0.0) == 7.5


def test_failures_in_a_row_are_limited_and_progress_forgets_them() -> None:
    counted = tries(Clock(), RetryPolicy(max_attempts=2))
    counted.fail(Unavailable("first"))
    counted.succeed()
    counted.fail(Unavailable("second"))
    with pytest.raises(Unavailable, match="third"):
        counted.fail(Unavailable("third"))


def test_an_error_that_cannot_pass_is_raised_at_once() -> None:
    with pytest.raises(InvalidArgument, match="bad"):
        tries(Clock()).fail(InvalidArgument("bad"))


def test_a_wait_beyond_the_deadline_raises_the_error_itself() -> None:
    with pytest.raises(ResourceExhausted, match="full"):
        tries(Clock(), timeout_s=5.0).fail(ResourceExhausted("full", retry_after_s=6.0))


def test_time_left_shrinks_and_its_end_is_named_with_the_request_id() -> None:
    clock = Clock()
    counted = tries(clock, timeout_s=3.0)
    clock.now += 2.0
    assert counted.time_left_s() == 1.0
    clock.now += 2.0
    with pytest.raises(DeadlineExceeded, match="3 s") as caught:
        counted.time_left_s()
    assert caught.value.request_id == "r1"


def test_the_platforms_request_id_is_kept() -> None:
    named = tries(Clock()).named(UnderstudyError("x", {"request_id": "theirs"}))
    assert named.request_id == "theirs"
