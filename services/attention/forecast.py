"""How long work takes at the measured rates, and what has to be done before a sequence can end.

Everything here is a lower bound: a request is refused early only when it cannot be served in time
even if every answer ahead of it is short. Pure arithmetic over plain data.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from services.attention.sequence import Priority

DECAY: Final = 0.97
MIN_STEPS: Final = 16
"""Steps measured before a forecast is trusted; the first ones warm caches and kernels up."""
MAX_SURPRISE: Final = 4.0
"""A step counts for at most this multiple of what was forecast: one hiccup is not a trend."""


class StepCosts:
    """A line through measured steps, `fixed + per_token * tokens`; recent ones weigh most."""

    def __init__(self) -> None:
        self._num_steps = 0
        self._weight = 0.0
        self._tokens = 0.0
        self._seconds = 0.0
        self._tokens_squared = 0.0
        self._tokens_seconds = 0.0

    def note(self, num_tokens: int, duration_s: float) -> None:
        """Learn from one step."""
        forecast_s = self.seconds(1, num_tokens)
        if forecast_s:
            duration_s = min(duration_s, MAX_SURPRISE * forecast_s)
        self._num_steps += 1
        self._weight = DECAY * self._weight + 1.0
        self._tokens = DECAY * self._tokens + num_tokens
        self._seconds = DECAY * self._seconds + duration_s
        self._tokens_squared = DECAY * self._tokens_squared + num_tokens * num_tokens
        self._tokens_seconds = DECAY * self._tokens_seconds + num_tokens * duration_s

    def seconds(self, num_steps: int, num_tokens: int) -> float | None:
        """Return how long so many steps over so many tokens take; None before it is known."""
        if self._num_steps < MIN_STEPS:
            return None
        fixed_s, per_token_s = self._line()
        return num_steps * fixed_s + num_tokens * per_token_s

    def _line(self) -> tuple[float, float]:
        mean_tokens, mean_s = self._tokens / self._weight, self._seconds / self._weight
        variance = self._tokens_squared / self._weight - mean_tokens**2
        if variance < 1e-6 * max(1.0, mean_tokens**2):  # all steps were of one size
            return mean_s, 0.0
        covariance = self._tokens_seconds / self._weight - mean_tokens * mean_s
        per_token_s = min(max(0.0, covariance / variance), mean_s / mean_tokens)
        return mean_s - per_token_s * mean_tokens, per_token_s


@dataclass(frozen=True, slots=True)
class Backlog:
    """Prompt tokens that a live sequence still has to have computed."""

    priority: Priority
    tenant: str
    num_tokens: int
    is_running: bool


@dataclass(frozen=True, slots=True)
class Outlook:
    """What has to be computed at the least before a sequence can end, and by how many steps.

    `own` is for the sequence alone, `ahead` for the prompts that go before it.
    """

    own_tokens: int
    own_steps: int
    ahead_tokens: int
    ahead_steps: int


def tokens_ahead(own: Backlog, others: Iterable[Backlog]) -> int:
    """Return the prompt tokens that are computed before `own`, at the least.

    More urgent classes and running prompts of its class go first, then its tenant's earlier ones;
    each other tenant of its class gets no more than its own tenant does meanwhile.
    """
    num_ahead, by_tenant = 0, Counter({own.tenant: own.num_tokens})
    for other in others:
        if other.priority < own.priority or (other.priority == own.priority and other.is_running):
            num_ahead += other.num_tokens
        elif other.priority == own.priority:
            by_tenant[other.tenant] += other.num_tokens
    share = by_tenant[own.tenant]
    return num_ahead - own.num_tokens + sum(min(share, amount) for amount in by_tenant.values())


def outlook(
    own: Backlog, others: Iterable[Backlog], *, num_outputs: int, token_budget: int
) -> Outlook:
    """Return what it takes until a sequence has its prompt and `num_outputs` outputs computed."""
    ahead = tokens_ahead(own, others)
    num_decodes = max(0, num_outputs - 1)
    return Outlook(
        own_tokens=own.num_tokens + num_decodes,
        own_steps=-(-own.num_tokens // token_budget) + num_decodes,
        ahead_tokens=ahead,
        ahead_steps=ahead // token_budget,
    )
