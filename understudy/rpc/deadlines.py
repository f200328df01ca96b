"""Points in time after which nobody waits for an answer any more.

A deadline is a fixed instant on the monotonic clock, so handing it down a chain of calls never
stretches it. The chassis gives every served call one; clients derive theirs from it.
"""

import math
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from understudy.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True, order=True)
class Deadline:
    """An instant on `time.monotonic()`; `math.inf` for streams that live as long as the peer."""

    expires_at: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """The instant this many seconds from now; `math.inf` never comes."""
        return cls(time.monotonic() + seconds)

    @property
    def remaining_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.expires_at - time.monotonic())

    @property
    def is_expired(self) -> bool:
        """Whether nobody waits any more."""
        return self.remaining_s == 0.0

    def at_most(self, seconds: float) -> "Deadline":
        """The earlier of this deadline and the instant `seconds` from now."""
        return min(self, Deadline.after(seconds))

    def check(self) -> None:
        """Raise `DeadlineExceeded` once the instant has passed."""
        if self.is_expired:
            raise DeadlineExceeded("The deadline passed before the work was done; allow more time.")


class TimedContext(Protocol):
    """The part of a servicer context or call that knows how much time is left."""

    def time_remaining(self) -> float | None:
        """Seconds left, or None where no deadline was set."""


_current: ContextVar[Deadline | None] = ContextVar("understudy_deadline", default=None)


def set_current_deadline(deadline: Deadline) -> None:
    """Make `deadline` the one of the call being served by this task; the chassis calls it."""
    _current.set(deadline)


def current_deadline(context: TimedContext | None = None) -> Deadline:
    """The deadline of the call being served, else of `context`, else one that never comes."""
    deadline = _current.get()
    if deadline is not None:
        return deadline
    remaining = context.time_remaining() if context is not None else None
    return Deadline.after(math.inf if remaining is None else remaining)
