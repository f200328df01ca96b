"""When to try again, and how long to wait before it: pure arithmetic over injected clock and draws.

A wait grows by powers of two, is jittered so that callers do not return in step, and is never
shorter than what the server asked for (RetryInfo).
"""

from collections.abc import Callable
from dataclasses import dataclass

from understudy.errors import DeadlineExceeded, ResourceExhausted, Unavailable, UnderstudyError
from understudy.rpc.status import with_metadata


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How a client answers failures that may pass."""

    max_attempts: int = 8
    """Tries in a row without progress, the first included; 1 turns retries off."""
    initial_backoff_s: float = 0.1
    """Wait before the second try, before jitter."""
    max_backoff_s: float = 5.0
    """Longest wait that the client chooses by itself; the server may ask for more."""

    def delay_s(self, failures: int, error: UnderstudyError, draw: float) -> float:
        """Return the wait after the nth failure in a row; `draw` in [0, 1) sets the jitter."""
        doubled = self.initial_backoff_s * 2.0 ** min(failures - 1, 32)
        jittered = min(doubled, self.max_backoff_s) * (0.5 + 0.5 * draw)
        asked = error.retry_after_s if isinstance(error, ResourceExhausted) else 0.0
        return max(jittered, asked)


class Tries:
    """The tries at one request: counts failures in a row against a policy and a deadline."""

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        timeout_s: float,
        request_id: str,
        clock: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        self.request_id = request_id
        self._policy = policy
        self._timeout_s = timeout_s
        self._ends_at = clock() + timeout_s
        self._clock = clock
        self._draw = draw
        self._failures = 0

    def time_left_s(self) -> float:
        """Return what is left of the caller's time; raises DeadlineExceeded when nothing is."""
        left_s = self._ends_at - self._clock()
        if left_s <= 0:
            message = f"The answer did not come within {self._timeout_s:g} s."
            raise self.named(DeadlineExceeded(message))
        return left_s

    def succeed(self) -> None:
        """Forget earlier failures: the server made progress."""
        self._failures = 0

    def fail(self, error: UnderstudyError, *, is_repeatable: bool | None = None) -> float:
        """Return the wait before the next try; raises the error when no further try can help.

        Unavailable and ResourceExhausted are repeatable unless the caller knows better.
        """
        error = self.named(error)
        if is_repeatable is None:
            is_repeatable = isinstance(error, Unavailable | ResourceExhausted)
        self._failures += 1
        delay_s = self._policy.delay_s(self._failures, error, self._draw())
        has_time = delay_s < self._ends_at - self._clock()
        if not is_repeatable or self._failures >= self._policy.max_attempts or not has_time:
            raise error
        return delay_s

    def named(self, error: UnderstudyError) -> UnderstudyError:
        """Return the error with the request id, unless the platform already named the request."""
        if error.request_id is not None:
            return error
        return with_metadata(error, request_id=self.request_id)
