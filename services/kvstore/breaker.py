"""A circuit breaker: after failures in a row, leave the other side alone for a while."""

from collections.abc import Callable


class CircuitBreaker:
    """Closed, open, or half open with a single trial. Belongs to one thread."""

    def __init__(self, max_failures: int, rest_s: float, clock_s: Callable[[], float]) -> None:
        self._max_failures = max_failures
        self._rest_s = rest_s
        self._clock_s = clock_s
        self._num_failures = 0
        self._retry_at_s = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the other side counts as broken, a trial pending or not."""
        return self._num_failures >= self._max_failures

    def allows(self) -> bool:
        """Return whether to try now; while open, one caller each rest period is let through."""
        if not self.is_open:
            return True
        now = self._clock_s()
        if now < self._retry_at_s:
            return False
        self._retry_at_s = now + self._rest_s
        return True

    def note_success(self) -> None:
        """Close."""
        self._num_failures = 0

    def note_failure(self) -> None:
        """Count a failure; the last one allowed opens the breaker."""
        self._num_failures += 1
        self._retry_at_s = self._clock_s() + self._rest_s
