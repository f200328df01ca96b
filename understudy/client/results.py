"""What the SDK hands back: plain, frozen data that knows nothing of gRPC.

Event  = Started | Delta | Finished      one item of a stream, in this order
Answer                                   a whole stream, put together
Decision > Attempt > Usage, Verdict      who answered, why, and what it cost

Absent facts (no calibrator, no threshold) are None, never a made-up number.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias, cast

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
JsonObject: TypeAlias = "dict[str, JsonValue]"


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


class DecisionReason(StrEnum):
    """Why the pool that answered was the one to answer."""

    SLM_ACCEPTED = "slm_accepted"
    LOW_CONFIDENCE = "low_confidence"
    VERIFIER_REFUSED = "verifier_refused"
    NO_CALIBRATOR = "no_calibrator"
    REQUESTED = "requested"
    SLM_UNAVAILABLE = "slm_unavailable"
    UNKNOWN = "unknown"


class Gap(StrEnum):
    """Something that native pools give and an external engine did not; types.proto says more."""

    MARGINS = "margins"
    RESUME = "resume"
    FORCED_TOKENS = "forced_tokens"
    GRAMMAR = "grammar"
    ADAPTER = "adapter"
    SEED = "seed"
    USAGE = "usage"
    PRIORITY = "priority"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model made; in a native pool its arguments satisfy the tool's schema."""

    id: str
    name: str
    arguments_json: str

    @property
    def arguments(self) -> JsonObject:
        """The arguments, parsed."""
        return cast("JsonObject", json.loads(self.arguments_json))


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of an attempt as the caller is billed for them."""

    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verifier's result; `detail` is empty when the answer passed."""

    verifier: str
    is_passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One model's try at a request."""

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


@dataclass(frozen=True, slots=True)
class Decision:
    """What the router decided for one request, and why.

    `cost` counts every attempt, in units of one LLM position; `cost_ratio` divides it by the cost
    of the LLM alone on the same prompt. `trace_id` is empty when tracing is off.
    """

    pool: str
    reason: DecisionReason
    workload: str
    threshold: float | None
    attempts: tuple[Attempt, ...]
    cost: float
    cost_ratio: float
    trace_id: str
    is_resumable: bool

    @property
    def is_escalated(self) -> bool:
        """Whether the SLM tried and the answer came from another pool."""
        return len(self.attempts) > 1 and self.attempts[0].pool != self.pool

    @property
    def confidence(self) -> float | None:
        """Calibrated P(the SLM's answer passes); None when no calibrator applied."""
        known = (attempt.confidence for attempt in self.attempts)
        return next((confidence for confidence in known if confidence is not None), None)


@dataclass(frozen=True, slots=True)
class Started:
    """The request was admitted; an empty `resume_token` says that resume is off."""

    request_id: str
    resume_token: str
    time_left_s: float


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer: text to append, or tool calls that are complete."""

    index: int
    text: str
    tool_calls: tuple[ToolCall, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer."""

    finish_reason: FinishReason
    usage: Usage
    decision: Decision


Event: TypeAlias = Started | Delta | Finished


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    request_id: str
    text: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: Usage
    decision: Decision


@dataclass(frozen=True, slots=True)
class Model:
    """A name a caller may use; `cost_per_position` is in units of one LLM position."""

    id: str
    version: str
    max_context_tokens: int
    cost_per_position: float
