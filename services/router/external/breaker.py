"""When what fails again and again is left alone: pure arithmetic over an injected clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

MAX_FAILURES: Final = 3
"""Failures in a row before the first rest."""
FIRST_REST_S: Final = 1.0
LONGEST_REST_S: Final = 30.0


class Breaker:
    """Counts failures in a row; rests double as long as the first try after each one fails."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._num_failures = 0
        self._rests_until_s = clock_s()

    @property
    def is_resting(self) -> bool:
        """Whether the endpoint gets no request now."""
        return self._clock_s() < self._rests_until_s

    def succeed(self) -> None:
        """Forget earlier failures."""
        self._num_failures = 0

    def fail(self) -> None:
        """Count a failure; what began before a rest counts once with it."""
        if self.is_resting:
            return
        self._num_failures += 1
        if self._num_failures >= MAX_FAILURES:
            doublings = min(self._num_failures - MAX_FAILURES, 16)
            rest_s = min(FIRST_REST_S * 2.0**doublings, LONGEST_REST_S)
            self._rests_until_s = self._clock_s() + rest_s
