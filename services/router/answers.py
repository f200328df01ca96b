"""The events of an answer, and the facts a decision is made of: plain data for both edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from services.router.requests import ToolCall
from understudy.workloads import Verdict

FinishReason = Literal["stop", "length", "tool_calls"]
Reason = Literal[
    "slm_accepted",
    "low_confidence",
    "verifier_refused",
    "no_calibrator",
    "requested",
    "slm_unavailable",
]
Gap = Literal[
    "margins", "resume", "forced_tokens", "grammar", "adapter", "seed", "usage", "priority"
]
"""What an external engine did not give to an attempt; types.proto says what each means."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one attempt."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """One model's try at a request; costs are in units of one LLM position."""

    pool: str
    model: str
    adapter: str
    usage: Usage
    forced_tokens: int
    confidence: float | None
    computed_positions: int
    cost: float
    duration_s: float
    verdicts: tuple[Verdict, ...]
    worker: str
    gaps: tuple[Gap, ...] = ()
    """What the engine behind the pool did not give; none for native pools."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Who answered, why, and what it cost."""

    pool: str
    reason: Reason
    workload: str
    threshold: float | None
    attempts: tuple[Attempt, ...]
    cost: float
    cost_ratio: float
    trace_id: str
    is_resumable: bool

    @property
    def confidence(self) -> float | None:
        """The SLM's calibrated confidence, where one was measured."""
        known = (attempt.confidence for attempt in self.attempts)
        return next((confidence for confidence in known if confidence is not None), None)

    @property
    def llm_alone_cost(self) -> float:
        """What the LLM alone would have cost, as `cost_ratio` takes it."""
        return self.cost / self.cost_ratio if self.cost_ratio else 0.0

    @property
    def verdict(self) -> Literal["passed", "failed", "none"]:
        """What the verifiers say of the answer; none where nothing could be verified."""
        verdicts = self.attempts[-1].verdicts
        if not verdicts:
            return "none"
        return "passed" if all(verdict.passed for verdict in verdicts) else "failed"


@dataclass(frozen=True, slots=True)
class Started:
    """The request was admitted."""

    request_id: str
    resume_token: str
    time_left_s: float


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer."""

    index: int
    text: str
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer."""

    finish_reason: FinishReason
    usage: Usage
    decision: Decision


Event = Started | Delta | Finished
