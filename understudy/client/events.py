"""From protos to results: pure, shared by both clients.

An enum value that this version of the SDK does not know becomes UNKNOWN, so that a newer router
never breaks an older caller.
"""

from collections.abc import Iterable
from typing import Final, TypeAlias

from understudy.api.router.v1 import router_pb2
from understudy.api.types.v1 import types_pb2
from understudy.client.results import (
    Attempt,
    Decision,
    DecisionReason,
    Delta,
    Finished,
    FinishReason,
    Gap,
    Model,
    Started,
    ToolCall,
    Usage,
    Verdict,
)
from understudy.rpc import to_seconds

StreamMessage: TypeAlias = router_pb2.GenerateResponse | router_pb2.ResumeResponse

_FINISH_REASONS: Final = {
    types_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    types_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    types_pb2.FINISH_REASON_TOOL_CALLS: FinishReason.TOOL_CALLS,
    types_pb2.FINISH_REASON_CANCELLED: FinishReason.CANCELLED,
}
_DECISION_REASONS: Final = {
    types_pb2.Decision.REASON_SLM_ACCEPTED: DecisionReason.SLM_ACCEPTED,
    types_pb2.Decision.REASON_LOW_CONFIDENCE: DecisionReason.LOW_CONFIDENCE,
    types_pb2.Decision.REASON_VERIFIER_REFUSED: DecisionReason.VERIFIER_REFUSED,
    types_pb2.Decision.REASON_NO_CALIBRATOR: DecisionReason.NO_CALIBRATOR,
    types_pb2.Decision.REASON_REQUESTED: DecisionReason.REQUESTED,
    types_pb2.Decision.REASON_SLM_UNAVAILABLE: DecisionReason.SLM_UNAVAILABLE,
}

_GAPS: Final = {
    types_pb2.Attempt.GAP_MARGINS: Gap.MARGINS,
    types_pb2.Attempt.GAP_RESUME: Gap.RESUME,
    types_pb2.Attempt.GAP_FORCED_TOKENS: Gap.FORCED_TOKENS,
    types_pb2.Attempt.GAP_GRAMMAR: Gap.GRAMMAR,
    types_pb2.Attempt.GAP_ADAPTER: Gap.ADAPTER,
    types_pb2.Attempt.GAP_SEED: Gap.SEED,
    types_pb2.Attempt.GAP_USAGE: Gap.USAGE,
    types_pb2.Attempt.GAP_PRIORITY: Gap.PRIORITY,
}


def to_started(started: router_pb2.Started) -> Started:
    """Map the first event."""
    time_left_s = started.time_left.seconds + started.time_left.nanos / 1e9
    return Started(started.request_id, started.resume_token, time_left_s)


def to_delta(delta: router_pb2.Delta) -> Delta:
    """Map a piece of the answer."""
    return Delta(delta.index, delta.text, to_tool_calls(delta.tool_calls))


def to_finished(finished: router_pb2.Finished) -> Finished:
    """Map the last event."""
    return Finished(
        finish_reason=_FINISH_REASONS.get(finished.finish_reason, FinishReason.UNKNOWN),
        usage=to_usage(finished.usage),
        decision=to_decision(finished.decision),
    )


def to_tool_calls(calls: Iterable[router_pb2.ToolCall]) -> tuple[ToolCall, ...]:
    """Map the calls of a delta."""
    return tuple(ToolCall(call.id, call.name, call.arguments_json) for call in calls)


def to_usage(usage: types_pb2.Usage) -> Usage:
    """Map token counts."""
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens)


def to_decision(decision: types_pb2.Decision) -> Decision:
    """Map a decision with all its attempts."""
    return Decision(
        pool=decision.pool,
        reason=_DECISION_REASONS.get(decision.reason, DecisionReason.UNKNOWN),
        workload=decision.workload,
        threshold=decision.threshold if decision.HasField("threshold") else None,
        attempts=tuple(_to_attempt(attempt) for attempt in decision.attempts),
        cost=decision.cost,
        cost_ratio=decision.cost_ratio,
        trace_id=decision.trace_id,
        is_resumable=decision.is_resumable,
    )


def to_models(response: router_pb2.ListModelsResponse) -> tuple[Model, ...]:
    """Map the models, in the router's order."""
    return tuple(
        Model(model.id, model.version, model.max_context_tokens, model.cost_per_position)
        for model in response.models
    )


def _to_attempt(attempt: types_pb2.Attempt) -> Attempt:
    return Attempt(
        pool=attempt.pool,
        model=attempt.model,
        adapter=attempt.adapter,
        usage=to_usage(attempt.usage),
        forced_tokens=attempt.forced_tokens,
        confidence=attempt.confidence if attempt.HasField("confidence") else None,
        computed_positions=attempt.computed_positions,
        cost=attempt.cost,
        duration_s=to_seconds(attempt.duration),
        verdicts=tuple(
            Verdict(verdict.verifier, verdict.is_passed, verdict.detail)
            for verdict in attempt.verdicts
        ),
        worker=attempt.worker,
        gaps=tuple(_GAPS.get(gap, Gap.UNKNOWN) for gap in attempt.gaps),
    )
