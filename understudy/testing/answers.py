"""What a fake router answers, in the SDK's own words, and how that looks on the wire."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar

from google.protobuf.duration_pb2 import Duration

from understudy.api.router.v1 import router_pb2
from understudy.api.types.v1 import types_pb2
from understudy.client import Decision, DecisionReason, FinishReason, Model, ToolCall, Usage

ResponseT = TypeVar("ResponseT", router_pb2.GenerateResponse, router_pb2.ResumeResponse)

_FINISH_REASONS: Final = {
    FinishReason.UNKNOWN: types_pb2.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: types_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: types_pb2.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: types_pb2.FINISH_REASON_TOOL_CALLS,
    FinishReason.CANCELLED: types_pb2.FINISH_REASON_CANCELLED,
}
_DECISION_REASONS: Final = {
    DecisionReason.UNKNOWN: types_pb2.Decision.REASON_UNSPECIFIED,
    DecisionReason.SLM_ACCEPTED: types_pb2.Decision.REASON_SLM_ACCEPTED,
    DecisionReason.LOW_CONFIDENCE: types_pb2.Decision.REASON_LOW_CONFIDENCE,
    DecisionReason.VERIFIER_REFUSED: types_pb2.Decision.REASON_VERIFIER_REFUSED,
    DecisionReason.NO_CALIBRATOR: types_pb2.Decision.REASON_NO_CALIBRATOR,
    DecisionReason.REQUESTED: types_pb2.Decision.REASON_REQUESTED,
    DecisionReason.SLM_UNAVAILABLE: types_pb2.Decision.REASON_SLM_UNAVAILABLE,
}


def _decision() -> Decision:
    return Decision(
        pool="llm",
        reason=DecisionReason.NO_CALIBRATOR,
        workload="",
        threshold=None,
        attempts=(),
        cost=0.0,
        cost_ratio=1.0,
        trace_id="",
        is_resumable=True,
    )


@dataclass(frozen=True, slots=True)
class FakeAnswer:
    """One answer: a delta for each text, then the tool calls in one delta where there are any."""

    texts: tuple[str, ...] = ("Hello", ", ", "world.")
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason = FinishReason.STOP
    usage: Usage = field(default_factory=lambda: Usage(8, 3, 0))
    decision: Decision = field(default_factory=_decision)

    def deltas(self) -> Iterator[router_pb2.Delta]:
        """Yield the deltas on the wire, numbered."""
        num_texts = len(self.texts)
        for index, text in enumerate(self.texts):
            yield router_pb2.Delta(index=index, text=text)
        if self.tool_calls:
            calls = [
                router_pb2.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments_json)
                for call in self.tool_calls
            ]
            yield router_pb2.Delta(index=num_texts, tool_calls=calls)

    def finished(self) -> router_pb2.Finished:
        """Return the last event on the wire."""
        return router_pb2.Finished(
            finish_reason=_FINISH_REASONS[self.finish_reason],
            usage=types_pb2.Usage(
                prompt_tokens=self.usage.prompt_tokens,
                completion_tokens=self.usage.completion_tokens,
                cached_prompt_tokens=self.usage.cached_prompt_tokens,
            ),
            decision=_encode_decision(self.decision),
        )


def encode_started(request_id: str, resume_token: str, time_left_s: float) -> router_pb2.Started:
    """Return the first event on the wire."""
    return router_pb2.Started(
        request_id=request_id, resume_token=resume_token, time_left=_duration(time_left_s)
    )


def encode_model(model: Model) -> router_pb2.Model:
    """Return a model on the wire."""
    return router_pb2.Model(
        id=model.id,
        version=model.version,
        max_context_tokens=model.max_context_tokens,
        cost_per_position=model.cost_per_position,
    )


def _encode_decision(decision: Decision) -> types_pb2.Decision:
    return types_pb2.Decision(
        pool=decision.pool,
        reason=_DECISION_REASONS[decision.reason],
        workload=decision.workload,
        threshold=decision.threshold,
        attempts=[
            types_pb2.Attempt(
                pool=attempt.pool,
                model=attempt.model,
                adapter=attempt.adapter,
                usage=types_pb2.Usage(
                    prompt_tokens=attempt.usage.prompt_tokens,
                    completion_tokens=attempt.usage.completion_tokens,
                    cached_prompt_tokens=attempt.usage.cached_prompt_tokens,
                ),
                forced_tokens=attempt.forced_tokens,
                confidence=attempt.confidence,
                computed_positions=attempt.computed_positions,
                cost=attempt.cost,
                duration=_duration(attempt.duration_s),
                verdicts=[
                    types_pb2.Verdict(
                        verifier=verdict.verifier,
                        is_passed=verdict.is_passed,
                        detail=verdict.detail,
                    )
                    for verdict in attempt.verdicts
                ],
                worker=attempt.worker,
            )
            for attempt in decision.attempts
        ],
        cost=decision.cost,
        cost_ratio=decision.cost_ratio,
        trace_id=decision.trace_id,
        is_resumable=decision.is_resumable,
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
