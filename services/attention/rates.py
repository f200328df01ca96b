"""Measured rates, and whether a fetch beats recomputing. Pure arithmetic."""

import math
from dataclasses import dataclass
from typing import Final

SMOOTHING: Final = 0.2
HEADROOM: Final = 1.25
SLACK: Final = 2.0
"""How much longer than its rate promises a read may take."""


@dataclass(slots=True)
class Rate:
    """An exponentially smoothed amount per second.

    Unknown until something was measured, and again once the last measurement is older than
    `max_age_s`: a rate that keeps anybody from measuring it must not hold for ever.
    """

    max_age_s: float = math.inf
    _smoothed: float = 0.0
    _noted_s: float = -math.inf

    def note(self, amount: float, duration_s: float, now_s: float) -> None:
        """Learn from one measurement; empty ones teach nothing."""
        if amount <= 0 or duration_s <= 0:
            return
        known, measured = self.per_s(now_s), amount / duration_s
        self._smoothed = measured if known is None else known + SMOOTHING * (measured - known)
        self._noted_s = now_s

    def per_s(self, now_s: float) -> float | None:
        """Return the rate, None while it is unknown."""
        has_rate = self._smoothed > 0 and now_s - self._noted_s <= self.max_age_s
        return self._smoothed if has_rate else None


def is_fetch_faster(
    num_tokens: int,
    size_bytes: int,
    *,
    prefill_tokens_per_s: float | None,
    fetch_bytes_per_s: float | None,
    round_trip_s: float,
) -> bool:
    """Return whether fetching KV takes less time than computing it, with some headroom.

    What has not been measured lately counts as fast enough: a fetch is how it gets measured.
    """
    if prefill_tokens_per_s is None or fetch_bytes_per_s is None:
        return True
    fetch_s = round_trip_s + size_bytes / fetch_bytes_per_s
    return fetch_s * HEADROOM < num_tokens / prefill_tokens_per_s


def is_swap_faster(
    num_tokens: int,
    size_bytes: int,
    *,
    prefill_tokens_per_s: float | None,
    fetch_bytes_per_s: float | None,
    write_bytes_per_s: float | None,
    round_trip_s: float,
) -> bool:
    """Return whether writing KV out now and fetching it later takes less time than computing it.

    What has not been measured lately counts as fast enough: a swap is how it gets measured.
    """
    write_s = 0.0 if write_bytes_per_s is None else size_bytes / write_bytes_per_s
    return is_fetch_faster(
        num_tokens,
        size_bytes,
        prefill_tokens_per_s=prefill_tokens_per_s,
        fetch_bytes_per_s=fetch_bytes_per_s,
        round_trip_s=round_trip_s + write_s,
    )


def read_limit_s(
    num_tokens: int,
    size_bytes: int,
    *,
    prefill_tokens_per_s: float | None,
    fetch_bytes_per_s: float | None,
) -> float | None:
    """Return how long a fetch may take before recomputing is the better choice.

    That is what it was thought to take, with some slack, and at most what computing the same
    takes; None when neither was measured.
    """
    limits_s = []
    if prefill_tokens_per_s is not None:
        limits_s.append(num_tokens / prefill_tokens_per_s)
    if fetch_bytes_per_s is not None:
        limits_s.append(SLACK * size_bytes / fetch_bytes_per_s)
    return min(limits_s, default=None)


@dataclass(slots=True)
class Breaker:
    """Stops asking a dependency that keeps failing; after `rest_s` it is tried again."""

    max_failures: int
    rest_s: float
    num_failures: int = 0
    resting_until_s: float = 0.0

    def allows(self, now_s: float) -> bool:
        """Return whether the dependency may be asked now."""
        return now_s >= self.resting_until_s

    def note_success(self) -> None:
        """Forget earlier failures."""
        self.num_failures = 0

    def note_failure(self, now_s: float) -> None:
        """Count a failure; enough of them in a row start a rest."""
        self.num_failures += 1
        if self.num_failures >= self.max_failures:
            self.resting_until_s = now_s + self.rest_s
            self.num_failures = 0
