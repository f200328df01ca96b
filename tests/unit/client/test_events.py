"""Mapping protos to results."""

from understudy import DecisionReason, FinishReason
from understudy.api.router.v1 import router_pb2
from understudy.api.types.v1 import types_pb2
from understudy.client import events


def test_absent_numbers_stay_absent() -> None:
    decision = events.to_decision(types_pb2.Decision(attempts=[types_pb2.Attempt(pool="llm")]))
    assert decision.threshold is None
    assert decision.confidence is None
    assert decision.attempts[0].confidence is None


def test_an_escalated_decision_says_so() -> None:
    attempts = [types_pb2.Attempt(pool="slm", confidence=0.25), types_pb2.Attempt(pool="llm")]
    proto = types_pb2.Decision(
        pool="llm",
        reason=types_pb2.Decision.REASON_LOW_CONFIDENCE,
        threshold=0.5,
        attempts=attempts,
    )
    decision = events.to_decision(proto)
    assert decision.is_escalated
    assert decision.reason is DecisionReason.LOW_CONFIDENCE
    assert (decision.confidence, decision.threshold) == (0.25, 0.5)


def test_a_single_attempt_is_no_escalation() -> None:
    proto = types_pb2.Decision(pool="slm", attempts=[types_pb2.Attempt(pool="slm")])
    assert not events.to_decision(proto).is_escalated


def test_reasons_of_a_newer_router_become_unknown() -> None:
    finished = router_pb2.Finished()
    finished.finish_reason = 99  # type: ignore[assignment]
    finished.decision.reason = 99  # type: ignore[assignment]
    mapped = events.to_finished(finished)
    assert mapped.finish_reason is FinishReason.UNKNOWN
    assert mapped.decision.reason is DecisionReason.UNKNOWN


def test_every_reason_but_the_unspecified_has_a_name() -> None:
    for finish, _ in types_pb2.FinishReason.items()[1:]:
        proto = router_pb2.Finished(finish_reason=types_pb2.FinishReason.Value(finish))
        assert events.to_finished(proto).finish_reason is not FinishReason.UNKNOWN
    for reason, _ in types_pb2.Decision.Reason.items()[1:]:
        decision = types_pb2.Decision(reason=types_pb2.Decision.Reason.Value(reason))
        assert events.to_decision(decision).reason is not DecisionReason.UNKNOWN


def test_tool_arguments_are_parsed_on_demand() -> None:
    call = router_pb2.ToolCall(id="c", name="book", arguments_json='{"seats": 4}')
    assert events.to_tool_calls([call])[0].arguments == {"seats": 4}
