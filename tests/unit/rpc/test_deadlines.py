"""Deadlines only ever shrink."""

import asyncio
import contextvars
import math

import pytest

from understudy.errors import DeadlineExceeded
from understudy.rpc import Deadline, current_deadline
from understudy.rpc.deadlines import set_current_deadline


class Context:
    """A servicer context with this much time left."""

    def __init__(self, remaining):
        self._remaining = remaining

    def time_remaining(self):
        return self._remaining


def test_passed_deadline_is_expired_and_says_so():
    deadline = Deadline.after(0.0)

    assert deadline.is_expired
    assert deadline.remaining_s == 0.0
    with pytest.raises(DeadlineExceeded):
        deadline.check()


def test_at_most_never_stretches_a_deadline():
    deadline = Deadline.after(10.0)

    assert deadline.at_most(1000.0) == deadline
    assert deadline.at_most(1.0) < deadline


def test_endless_deadline_never_comes():
    deadline = Deadline.after(math.inf)

    deadline.check()
    assert deadline.remaining_s == math.inf
    assert deadline.at_most(5.0).remaining_s <= 5.0


def test_context_without_a_deadline_gives_one_that_never_comes():
    assert current_deadline().remaining_s == math.inf
    assert current_deadline(Context(None)).remaining_s == math.inf
    assert 0 < current_deadline(Context(3.0)).remaining_s <= 3.0


def test_deadline_of_the_served_call_wins_over_the_context():
    def served() -> float:
        set_current_deadline(Deadline.after(1.0))
        return current_deadline(Context(50.0)).remaining_s

    assert contextvars.copy_context().run(served) <= 1.0


async def test_deadlines_of_two_tasks_stay_apart():
    async def served(seconds: float) -> float:
        set_current_deadline(Deadline.after(seconds))
        await asyncio.sleep(0)
        return current_deadline().remaining_s

    short, long = await asyncio.gather(served(10.0), served(100.0))

    assert short <= 10.0 < long
