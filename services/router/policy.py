"""The router's rules as pure functions: which pool tries first, whether its answer stands, costs.

Other pools than `slm` and `llm` answer those who name them, and nobody else.

Cost of a position = (non-embedding active parameters + LM head) of the model over those of the
LLM; cost of an attempt = that times prompt plus output positions from a cold start. Cache hits are
reported beside it, never subtracted. There is no default threshold: without a calibrator for
(SLM version, workload, output type), or under sampling it was not measured with, the LLM answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.router.answers import Attempt, Decision, Reason, Usage
from understudy.evidence import Calibrator
from understudy.workloads import Verdict

SLM: Final = "slm"
LLM: Final = "llm"
AUTO: Final = "auto"


@dataclass(frozen=True, slots=True)
class Path:
    """Which pool tries first; `reason` is set when its answer stands whatever it is."""

    pool: str
    reason: Reason | None

    @property
    def is_trial(self) -> bool:
        """Whether the answer is judged, and may be escalated."""
        return self.reason is None


def choose_path(
    model: str, calibrator: Calibrator | None, *, is_greedy: bool, is_slm_available: bool
) -> Path:
    """Choose the first pool for a request of a known model name.

    `calibrator` is the one for the SLM on stage, the request's workload and output type, or None.
    """
    if model != AUTO:
        return Path(model, "requested")
    if calibrator is None or not is_greedy:
        return Path(LLM, "no_calibrator")
    if calibrator.threshold is None:
        return Path(LLM, "low_confidence")
    if not is_slm_available:
        return Path(LLM, "slm_unavailable")
    return Path(SLM, None)


def judge(confidence: float, threshold: float, verdicts: Sequence[Verdict]) -> Reason:
    """Return why an SLM answer stands ("slm_accepted") or is escalated."""
    if confidence < threshold:
        return "low_confidence"
    if not all(verdict.passed for verdict in verdicts):
        return "verifier_refused"
    return "slm_accepted"


def attempt_cost(usage: Usage, position_parameters: int, llm_position_parameters: int) -> float:
    """Return the cost of an attempt in LLM positions, from a cold start."""
    return _positions(usage) * position_parameters / llm_position_parameters


def cost_ratio(attempts: Sequence[Attempt]) -> float:
    """Return the cost of all attempts over the cost of the LLM alone on the same prompt.

    The LLM's own attempt measures the denominator; where it made none, its output is taken to be
    as long as the answer.
    """
    llm_positions = next(
        (_positions(attempt.usage) for attempt in attempts if attempt.pool == LLM),
        _positions(attempts[-1].usage),
    )
    return sum(attempt.cost for attempt in attempts) / max(llm_positions, 1)


def decide(
    reason: Reason,
    attempts: Sequence[Attempt],
    *,
    workload: str,
    threshold: float | None,
    trace_id: str,
    is_resumable: bool,
) -> Decision:
    """Put the decision together; the last attempt answered."""
    return Decision(
        pool=attempts[-1].pool,
        reason=reason,
        workload=workload,
        threshold=threshold,
        attempts=tuple(attempts),
        cost=sum(attempt.cost for attempt in attempts),
        cost_ratio=cost_ratio(attempts),
        trace_id=trace_id,
        is_resumable=is_resumable,
    )


def _positions(usage: Usage) -> int:
    return usage.prompt_tokens + usage.completion_tokens
