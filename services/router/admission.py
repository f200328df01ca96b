"""What keeps an overload bounded: requests at once, LLM attempts at once, escalations a second.

A broken SLM pool must not flood the LLM: beyond the caps a request is refused with the reason and
a delay. Pure counters over an injected clock; one event loop owns them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from understudy.errors import ResourceExhausted


class Slots:
    """At most so many at once; the next one is refused."""

    def __init__(self, max_held: int, what: str, retry_after_s: float = 1.0) -> None:
        self._max_held = max_held
        self._what = what
        self._retry_after_s = retry_after_s
        self.num_held = 0

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold one place while the block runs; ResourceExhausted when all are taken."""
        if self.num_held >= self._max_held:
            raise ResourceExhausted(
                f"All {self._max_held} places for {self._what} are taken; try again shortly.",
                {"limit": self._what},
                retry_after_s=self._retry_after_s,
            )
        self.num_held += 1
        try:
            yield
        finally:
            self.num_held -= 1


class Budget:
    """A token bucket: so many a second, with a burst of two seconds' worth (at least one)."""

    def __init__(self, per_s: float, what: str, clock: Callable[[], float]) -> None:
        self._per_s = per_s
        self._what = what
        self._clock = clock
        self._burst = max(1.0, 2 * per_s)
        self._tokens = self._burst
        self._filled_at = clock()

    def spend(self) -> None:
        """Take one; ResourceExhausted with the time until the next one when none is left."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._per_s)
        self._filled_at = now
        if self._tokens < 1.0:
            raise ResourceExhausted(
                f"The budget of {self._per_s:g} {self._what} per second is spent; the SLM pool "
                "hands over more requests than the LLM pool should take.",
                {"limit": self._what},
                retry_after_s=(1.0 - self._tokens) / self._per_s,
            )
        self._tokens -= 1.0


class Admission:
    """The caps of one router."""

    def __init__(
        self,
        max_requests: int,
        llm_max_attempts: int,
        escalations_per_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.requests = Slots(max_requests, "requests")
        self.llm_attempts = Slots(llm_max_attempts, "LLM attempts")
        self.escalations = Budget(escalations_per_s, "escalations", clock)
