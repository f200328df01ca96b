"""The router's protos from and to plain data; no decisions."""

from __future__ import annotations

from typing import Final

from google.protobuf.duration_pb2 import Duration

from services.router.answers import Attempt, Decision, Delta, Event, Finished, Started, Usage
from services.router.requests import (
    Message,
    Priority,
    Request,
    Role,
    Sampling,
    Tool,
    ToolCall,
    ToolMode,
    check_counts,
    parse_parameters,
)
from services.router.stage import ModelCard
from understudy.api.router.v1 import router_pb2
from understudy.api.types.v1 import types_pb2
from understudy.errors import InvalidArgument

_ROLES: Final[dict[int, Role]] = {
    router_pb2.Message.ROLE_SYSTEM: "system",
    router_pb2.Message.ROLE_USER: "user",
    router_pb2.Message.ROLE_ASSISTANT: "assistant",
    router_pb2.Message.ROLE_TOOL: "tool",
}
_PRIORITIES: Final[dict[int, Priority]] = {
    types_pb2.PRIORITY_UNSPECIFIED: "standard",
    types_pb2.PRIORITY_INTERACTIVE: "interactive",
    types_pb2.PRIORITY_STANDARD: "standard",
    types_pb2.PRIORITY_BATCH: "batch",
}
_MODES: Final[dict[int, ToolMode]] = {
    router_pb2.ToolChoice.MODE_UNSPECIFIED: "auto",
    router_pb2.ToolChoice.MODE_AUTO: "auto",
    router_pb2.ToolChoice.MODE_NONE: "none",
    router_pb2.ToolChoice.MODE_REQUIRED: "required",
    router_pb2.ToolChoice.MODE_NAMED: "named",
}
_FINISH: Final = {
    "stop": types_pb2.FINISH_REASON_STOP,
    "length": types_pb2.FINISH_REASON_LENGTH,
    "tool_calls": types_pb2.FINISH_REASON_TOOL_CALLS,
}
_REASONS: Final = {
    "slm_accepted": types_pb2.Decision.REASON_SLM_ACCEPTED,
    "low_confidence": types_pb2.Decision.REASON_LOW_CONFIDENCE,
    "verifier_refused": types_pb2.Decision.REASON_VERIFIER_REFUSED,
    "no_calibrator": types_pb2.Decision.REASON_NO_CALIBRATOR,
    "requested": types_pb2.Decision.REASON_REQUESTED,
    "slm_unavailable": types_pb2.Decision.REASON_SLM_UNAVAILABLE,
}

_GAPS: Final = {
    "margins": types_pb2.Attempt.GAP_MARGINS,
    "resume": types_pb2.Attempt.GAP_RESUME,
    "forced_tokens": types_pb2.Attempt.GAP_FORCED_TOKENS,
    "grammar": types_pb2.Attempt.GAP_GRAMMAR,
    "adapter": types_pb2.Attempt.GAP_ADAPTER,
    "seed": types_pb2.Attempt.GAP_SEED,
    "usage": types_pb2.Attempt.GAP_USAGE,
    "priority": types_pb2.Attempt.GAP_PRIORITY,
}


def to_request(message: router_pb2.GenerateRequest) -> Request:
    """Return the request; raises InvalidArgument for what plain data cannot hold."""
    num_tool_calls = sum(len(turn.tool_calls) for turn in message.messages)
    check_counts(len(message.messages), num_tool_calls, len(message.tools))
    mode = message.tool_choice.mode
    if mode not in _MODES:
        raise InvalidArgument(
            f"The tool choice {mode} is not known.", {"field": "tool_choice.mode"}
        )
    if message.priority not in _PRIORITIES:
        raise InvalidArgument(
            f"The priority {message.priority} is not known.", {"field": "priority"}
        )
    return Request(
        model=message.model,
        messages=tuple(_turn(turn, index) for index, turn in enumerate(message.messages)),
        prompt=message.prompt,
        tools=tuple(
            Tool(tool.name, tool.description, parse_parameters(tool.parameters_json, index))
            for index, tool in enumerate(message.tools)
        ),
        tool_mode=_MODES[mode],
        tool_name=message.tool_choice.name,
        schema_json=message.response_schema_json,
        sampling=_sampling(message.sampling),
        workload=message.workload,
        idempotency_key=message.idempotency_key,
        priority=_PRIORITIES[message.priority],
    )


def to_generate_response(event: Event) -> router_pb2.GenerateResponse:
    """Return an event of a new answer."""
    match event:
        case Started():
            return router_pb2.GenerateResponse(started=_started(event))
        case Delta():
            return router_pb2.GenerateResponse(delta=_delta(event))
        case Finished():
            return router_pb2.GenerateResponse(finished=_finished(event))


def to_resume_response(event: Event) -> router_pb2.ResumeResponse:
    """Return an event of a resumed answer."""
    match event:
        case Started():
            return router_pb2.ResumeResponse(started=_started(event))
        case Delta():
            return router_pb2.ResumeResponse(delta=_delta(event))
        case Finished():
            return router_pb2.ResumeResponse(finished=_finished(event))


def to_model(card: ModelCard) -> router_pb2.Model:
    """Return a model a caller may name."""
    return router_pb2.Model(
        id=card.id,
        version=card.version,
        max_context_tokens=card.max_context_tokens,
        cost_per_position=card.cost_per_position,
    )


def _turn(message: router_pb2.Message, index: int) -> Message:
    if message.role not in _ROLES:
        raise InvalidArgument(
            f"Message {index} has no known role.", {"field": f"messages[{index}].role"}
        )
    calls = tuple(ToolCall(call.id, call.name, call.arguments_json) for call in message.tool_calls)
    return Message(_ROLES[message.role], message.content, calls, message.tool_call_id)


def _sampling(params: types_pb2.SamplingParams) -> Sampling:
    return Sampling(
        max_tokens=params.max_tokens if params.HasField("max_tokens") else None,
        temperature=params.temperature,
        top_p=params.top_p if params.HasField("top_p") else 1.0,
        top_k=params.top_k,
        seed=params.seed,
        stop=tuple(params.stop),
        ignore_eos=params.ignore_eos,
    )


def _started(started: Started) -> router_pb2.Started:
    return router_pb2.Started(
        request_id=started.request_id,
        resume_token=started.resume_token,
        time_left=_duration(started.time_left_s),
    )


def _delta(delta: Delta) -> router_pb2.Delta:
    calls = [
        router_pb2.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments_json)
        for call in delta.tool_calls
    ]
    return router_pb2.Delta(index=delta.index, text=delta.text, tool_calls=calls)


def _finished(finished: Finished) -> router_pb2.Finished:
    return router_pb2.Finished(
        finish_reason=_FINISH[finished.finish_reason],
        usage=_usage(finished.usage),
        decision=_decision(finished.decision),
    )


def _usage(usage: Usage) -> types_pb2.Usage:
    return types_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_prompt_tokens=usage.cached_prompt_tokens,
    )


def _decision(decision: Decision) -> types_pb2.Decision:
    return types_pb2.Decision(
        pool=decision.pool,
        reason=_REASONS[decision.reason],
        workload=decision.workload,
        threshold=decision.threshold,
        attempts=[_attempt(attempt) for attempt in decision.attempts],
        cost=decision.cost,
        cost_ratio=decision.cost_ratio,
        trace_id=decision.trace_id,
        is_resumable=decision.is_resumable,
    )


def _attempt(attempt: Attempt) -> types_pb2.Attempt:
    return types_pb2.Attempt(
        pool=attempt.pool,
        model=attempt.model,
        adapter=attempt.adapter,
        usage=_usage(attempt.usage),
        forced_tokens=attempt.forced_tokens,
        confidence=attempt.confidence,
        computed_positions=attempt.computed_positions,
        cost=attempt.cost,
        duration=_duration(attempt.duration_s),
        verdicts=[
            types_pb2.Verdict(verifier=v.verifier, is_passed=v.passed, detail=v.detail)
            for v in attempt.verdicts
        ],
        worker=attempt.worker,
        gaps=[_GAPS[gap] for gap in attempt.gaps],
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
