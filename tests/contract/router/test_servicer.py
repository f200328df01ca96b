"""RouterService in process: who answers and why, what is refused, what survives a lost worker."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import grpc
import pytest

from understudy.api.router.v1 import router_pb2
from understudy.api.types.v1 import types_pb2
from understudy.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PromptTooLong,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    UnderstudyError,
    UnsupportedSchema,
)
from understudy.rpc import from_rpc_error
from understudy.testing.fake_attention import FakeAttention, FakeReply
from understudy.testing.tiny_tokenizer import tiny_tokenizer
from understudy.workloads import find_workload

CALL = '{"name":"PlayMusic","arguments":{"genre":"jazz"}}'
TIMEOUT_S = 20.0
Reason = types_pb2.Decision


def chat(text: str = "Hello?", **fields: Any) -> router_pb2.GenerateRequest:
    turn = router_pb2.Message(role=router_pb2.Message.ROLE_USER, content=text)
    return router_pb2.GenerateRequest(messages=[turn], **fields)


def snips(text: str = "play some jazz music", **fields: Any) -> router_pb2.GenerateRequest:
    tools = [
        router_pb2.Tool(
            name=tool["function"]["name"],  # type: ignore[index]
            description=tool["function"]["description"],  # type: ignore[index]
            parameters_json=json.dumps(tool["function"]["parameters"]),  # type: ignore[index]
        )
        for tool in find_workload("snips").tools
    ]
    return chat(text, tools=tools, **fields)


async def events(call: Any) -> list[Any]:
    return [event async for event in call]


async def answer(house: Any, request: router_pb2.GenerateRequest) -> tuple[list[Any], Any]:
    """Deltas and the end of one answer."""
    found = await events(house.stub.Generate(request, timeout=TIMEOUT_S))
    assert found[0].WhichOneof("event") == "started"
    assert found[-1].WhichOneof("event") == "finished"
    deltas = [event.delta for event in found[1:-1]]
    assert [delta.index for delta in deltas] == list(range(len(deltas)))
    return deltas, found[-1].finished


async def refusal(house: Any, request: router_pb2.GenerateRequest) -> UnderstudyError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(house.stub.Generate(request, timeout=TIMEOUT_S))
    return from_rpc_error(caught.value)


async def test_confident_slm_answer_stands_at_a_tenth_of_the_cost(town: Any) -> None:
    house = await town.open()
    deltas, end = await answer(house, snips())
    (call,) = deltas[0].tool_calls
    assert (call.name, json.loads(call.arguments_json)) == ("PlayMusic", {"genre": "jazz"})
    decision = end.decision
    assert end.finish_reason == types_pb2.FINISH_REASON_TOOL_CALLS
    assert (decision.pool, decision.reason) == ("slm", Reason.REASON_SLM_ACCEPTED)
    assert decision.workload == "snips"
    assert decision.threshold == pytest.approx(0.5)
    (attempt,) = decision.attempts
    assert attempt.confidence == pytest.approx(0.9)
    assert attempt.forced_tokens == 9
    assert attempt.model == "fake-slm@abababab"
    assert decision.cost_ratio == pytest.approx(0.1)
    positions = end.usage.prompt_tokens + end.usage.completion_tokens
    assert decision.cost == pytest.approx(0.1 * positions)
    assert [verdict.is_passed for verdict in attempt.verdicts] == [True] * 4
    assert not town.llm.submissions


async def test_doubtful_slm_answer_escalates_with_the_same_prompt_and_grammar(town: Any) -> None:
    town.slm.reply = lambda _: FakeReply(CALL, margin=0.2)
    town.llm.reply = lambda _: FakeReply(CALL)
    house = await town.open()
    _, end = await answer(house, snips())
    assert (end.decision.pool, end.decision.reason) == ("llm", Reason.REASON_LOW_CONFIDENCE)
    assert [attempt.pool for attempt in end.decision.attempts] == ["slm", "llm"]
    assert end.decision.cost_ratio == pytest.approx(1.1)
    (slm,), (llm,) = town.slm.submissions, town.llm.submissions
    assert slm.tokens == llm.tokens
    assert slm.grammar == llm.grammar
    assert (slm.adapter, llm.adapter) == ("", "snips-tools")
    assert len(llm.kv_root) == 32 and slm.kv_root != llm.kv_root


async def test_answer_that_a_verifier_refuses_escalates_however_sure_it_is(town: Any) -> None:
    town.slm.reply = lambda _: FakeReply('{"name":"PlayMusic","arguments":{"genre":"rock"}}')
    town.llm.reply = lambda _: FakeReply(CALL)
    house = await town.open()
    _, end = await answer(house, snips())
    assert end.decision.reason == Reason.REASON_VERIFIER_REFUSED
    assert not all(verdict.is_passed for verdict in end.decision.attempts[0].verdicts)


async def test_plain_chat_goes_to_the_llm_and_is_streamed(town: Any) -> None:
    house = await town.open()
    deltas, end = await answer(house, chat())
    assert len(deltas) == len("Hello.")
    assert "".join(delta.text for delta in deltas) == "Hello."
    assert end.decision.reason == Reason.REASON_NO_CALIBRATOR
    assert end.decision.cost_ratio == pytest.approx(1.0)
    assert end.usage.completion_tokens == len("Hello.") + 1


async def test_unknown_tools_go_to_the_llm_without_adapter(town: Any) -> None:
    town.llm.reply = lambda _: FakeReply('{"name":"stop","arguments":{}}')
    house = await town.open()
    tool = router_pb2.Tool(name="stop", description="Stops.", parameters_json="{}")
    deltas, end = await answer(house, chat(tools=[tool]))
    assert deltas[0].tool_calls[0].name == "stop"
    assert end.decision.reason == Reason.REASON_NO_CALIBRATOR
    (submit,) = town.llm.submissions
    assert submit.adapter == ""
    assert submit.grammar.kind == types_pb2.Grammar.KIND_JSON_SCHEMA
    assert "Stops." in tiny_tokenizer().decode(submit.tokens)


async def test_sampling_it_was_not_measured_with_voids_the_calibrator(town: Any) -> None:
    town.llm.reply = lambda _: FakeReply(CALL)
    house = await town.open()
    sampling = types_pb2.SamplingParams(temperature=0.7)
    _, end = await answer(house, snips(sampling=sampling))
    assert end.decision.reason == Reason.REASON_NO_CALIBRATOR
    assert not town.slm.submissions


async def test_a_calibrator_of_another_version_does_not_apply(town: Any) -> None:
    town.slm._info.model = "fake-slm@cdcdcdcd"
    town.llm.reply = lambda _: FakeReply(CALL)
    house = await town.open()
    _, end = await answer(house, snips())
    assert end.decision.reason == Reason.REASON_NO_CALIBRATOR


@pytest.mark.parametrize("pool", ["slm", "llm"])
async def test_a_pool_asked_for_by_name_answers_whatever_it_says(town: Any, pool: str) -> None:
    town.slm.reply = lambda _: FakeReply(CALL, margin=0.1)
    town.llm.reply = lambda _: FakeReply(CALL)
    house = await town.open()
    _, end = await answer(house, snips(model=pool))
    assert (end.decision.pool, end.decision.reason) == (pool, Reason.REASON_REQUESTED)
    assert end.decision.attempts[0].HasField("confidence") == (pool == "slm")


async def test_a_missing_adapter_is_for_the_operator(town: Any) -> None:
    del town.llm._info.adapters[:]
    house = await town.open()
    error = await refusal(house, snips(model="llm"))
    assert isinstance(error, FailedPrecondition)
    assert error.metadata["adapter"] == "snips-tools"


async def test_llm_answers_when_the_slm_pool_is_down(town: Any) -> None:
    town.llm.reply = lambda _: FakeReply(CALL)
    house = await town.open()
    await town.slm.stop()
    _, end = await answer(house, snips())
    assert (end.decision.pool, end.decision.reason) == ("llm", Reason.REASON_SLM_UNAVAILABLE)


async def test_llm_answers_when_the_slm_worker_is_full(town: Any) -> None:
    full = ResourceExhausted("The queue is full.", retry_after_s=3)
    town.slm.reply = lambda _: FakeReply(fail_after=0, error=full)
    town.llm.reply = lambda _: FakeReply(CALL)
    house = await town.open()
    _, end = await answer(house, snips())
    assert end.decision.reason == Reason.REASON_SLM_UNAVAILABLE


@pytest.mark.parametrize(
    "loss", [{"fail_after": 3, "error": Aborted("lost")}, {"fail_after": 3}, {"break_after": 3}]
)
async def test_a_lost_sequence_continues_elsewhere_from_its_tokens(
    town: Any, loss: dict[str, Any]
) -> None:
    house_reply = {"lost": False}

    def reply(submit: Any) -> FakeReply:
        if submit.committed_tokens or house_reply["lost"]:
            return FakeReply("Hello there.")
        house_reply["lost"] = True
        return FakeReply("Hello there.", **loss)

    town.llm.reply = reply
    await town.add_llm(other := FakeAttention(tiny_tokenizer(), reply=reply))
    house = await town.open()
    deltas, end = await answer(house, chat())
    assert "".join(delta.text for delta in deltas) == "Hello there."
    assert end.usage.completion_tokens == len("Hello there.") + 1
    (again,) = [s for s in (*town.llm.submissions, *other.submissions) if s.committed_tokens]
    assert again.committed_tokens == 3
    assert tiny_tokenizer().decode(again.tokens[-3:]) == "Hel"
    assert house.metric("replacements_total", pool="llm") == 1


async def test_a_killed_worker_that_returns_finishes_its_answers(town: Any) -> None:
    town.llm.reply = lambda s: FakeReply("Hello.", hold_after=None if s.committed_tokens else 2)
    house = await town.open()
    call = house.stub.Generate(chat(), timeout=TIMEOUT_S)
    for _ in range(3):
        await call.read()
    await town.llm.stop()
    await town.llm.start()
    found = await events(call)
    assert found[-1].finished.usage.completion_tokens == len("Hello.") + 1


async def test_a_full_llm_pool_refuses_with_its_retry_delay(town: Any) -> None:
    full = ResourceExhausted("No free blocks.", retry_after_s=3)
    town.llm.reply = lambda _: FakeReply(fail_after=0, error=full)
    house = await town.open()
    error = await refusal(house, chat())
    assert isinstance(error, ResourceExhausted)
    assert error.retry_after_s == 3


async def test_an_llm_pool_that_is_away_is_unavailable(town: Any) -> None:
    house = await town.open(llm_patience_s=0.2)
    await town.llm.stop()
    error = await refusal(house, chat())
    assert type(error) is Unavailable
    assert error.request_id


async def test_too_many_requests_are_refused_with_the_limit_named(town: Any) -> None:
    town.llm.reply = lambda _: FakeReply(hold_after=0)
    house = await town.open(max_requests=1)
    first = house.stub.Generate(chat(), timeout=TIMEOUT_S)
    await first.read()
    error = await refusal(house, chat())
    assert isinstance(error, ResourceExhausted)
    assert error.metadata["limit"] == "requests"
    town.llm.release()
    await events(first)
    await answer(house, chat())


async def test_llm_cap_and_escalation_budget_keep_a_broken_slm_from_flooding(town: Any) -> None:
    town.slm.reply = lambda _: FakeReply(CALL, margin=0.1)
    town.llm.reply = lambda _: FakeReply(CALL)
    house = await town.open(escalations_per_s=0.001)
    await answer(house, snips())
    error = await refusal(house, snips())
    assert isinstance(error, ResourceExhausted)
    assert error.metadata["limit"] == "escalations"
    capped = await town.open(llm_max_attempts=1)
    town.llm.reply = lambda _: FakeReply(hold_after=0)
    running = capped.stub.Generate(chat(), timeout=TIMEOUT_S)
    await running.read()
    await town.llm.wait_until(lambda: len(town.llm.submissions) == 2)
    error = await refusal(capped, chat())
    assert isinstance(error, ResourceExhausted)
    assert error.metadata["limit"] == "LLM attempts"
    running.cancel()


async def test_a_passed_deadline_ends_the_sequence_at_the_worker(town: Any) -> None:
    town.llm.reply = lambda _: FakeReply(hold_after=1)
    house = await town.open(request_timeout_s=0.3)
    error = await refusal(house, chat())
    assert isinstance(error, DeadlineExceeded)
    await town.llm.wait_until(lambda: town.llm.cancelled != [])


async def test_a_caller_that_leaves_cancels_the_sequence_at_the_worker(town: Any) -> None:
    town.llm.reply = lambda _: FakeReply(hold_after=2)
    house = await town.open()
    call = house.stub.Generate(chat(), timeout=TIMEOUT_S)
    await call.read()
    await call.read()
    call.cancel()
    await town.llm.wait_until(lambda: town.llm.cancelled == [town.llm.submissions[0].sequence_id])


async def test_stop_texts_are_cut_and_end_the_text(town: Any) -> None:
    town.llm.reply = lambda _: FakeReply("One. Two. STOP")
    house = await town.open()
    sampling = types_pb2.SamplingParams(stop=["STOP"])
    deltas, _ = await answer(house, chat(sampling=sampling))
    assert "".join(delta.text for delta in deltas) == "One. Two. "


async def test_a_cut_tool_call_ends_for_length_without_a_call(town: Any) -> None:
    town.slm.reply = town.llm.reply = lambda _: FakeReply(CALL)
    house = await town.open()
    sampling = types_pb2.SamplingParams(max_tokens=5)
    deltas, end = await answer(house, snips(sampling=sampling))
    assert end.finish_reason == types_pb2.FINISH_REASON_LENGTH
    assert [len(delta.tool_calls) for delta in deltas] == [0]
    assert end.decision.reason == Reason.REASON_LOW_CONFIDENCE


async def test_models_are_listed_with_versions_and_costs(town: Any) -> None:
    house = await town.open()
    response = await house.stub.ListModels(router_pb2.ListModelsRequest(), timeout=TIMEOUT_S)
    assert [model.id for model in response.models] == ["auto", "slm", "llm"]
    assert [model.cost_per_position for model in response.models] == pytest.approx([1, 0.1, 1])
    assert response.models[1].version == "fake-slm@abababab"


TOOL = router_pb2.Tool(name="go", parameters_json="{}")
BAD: list[tuple[router_pb2.GenerateRequest, type[UnderstudyError], str]] = [
    (router_pb2.GenerateRequest(), InvalidArgument, "messages"),
    (chat("  "), InvalidArgument, "messages[0].content"),
    (router_pb2.GenerateRequest(prompt=" \n"), InvalidArgument, "prompt"),
    (chat(prompt="both"), InvalidArgument, "messages"),
    (chat("x" * 5000), PromptTooLong, "messages"),
    (chat("x" * 1_100_000), InvalidArgument, "messages"),
    (chat(model="gpt-9"), NotFound, "model"),
    (chat(workload="poetry"), NotFound, "workload"),
    (chat(response_schema_json="{"), UnsupportedSchema, "response_schema_json"),
    (chat(response_schema_json='{"not": {}}'), UnsupportedSchema, "response_schema_json"),
    (
        chat(response_schema_json='{"type": "string", "format": "odd"}'),
        UnsupportedSchema,
        "response_schema_json",
    ),
    (chat(response_schema_json="{}", tools=[TOOL]), InvalidArgument, "response_schema_json"),
    (chat(sampling=types_pb2.SamplingParams(max_tokens=0)), InvalidArgument, "sampling.max_tokens"),
    (
        chat(sampling=types_pb2.SamplingParams(temperature=9)),
        InvalidArgument,
        "sampling.temperature",
    ),
    (chat(sampling=types_pb2.SamplingParams(top_p=0)), InvalidArgument, "sampling.top_p"),
    (chat(sampling=types_pb2.SamplingParams(stop=["x" * 129])), InvalidArgument, "sampling.stop"),
    (chat(tools=[TOOL, TOOL]), InvalidArgument, "tools[1].name"),
    (chat(tools=[router_pb2.Tool(name="a b")]), InvalidArgument, "tools[0].name"),
    (chat(tools=[router_pb2.Tool(name=f"t{n}") for n in range(65)]), InvalidArgument, "tools"),
    (
        chat(tools=[router_pb2.Tool(name="a", parameters_json='{"if": {}}')]),
        UnsupportedSchema,
        "tools[0].parameters_json",
    ),
    (
        chat(tool_choice=router_pb2.ToolChoice(mode=router_pb2.ToolChoice.MODE_REQUIRED)),
        InvalidArgument,
        "tool_choice",
    ),
    (
        chat(
            tools=[TOOL],
            tool_choice=router_pb2.ToolChoice(mode=router_pb2.ToolChoice.MODE_NAMED, name="fly"),
        ),
        InvalidArgument,
        "tool_choice.name",
    ),
    (chat(idempotency_key="k" * 129), InvalidArgument, "idempotency_key"),
    (
        router_pb2.GenerateRequest(messages=[router_pb2.Message(content="hi")]),
        InvalidArgument,
        "messages[0].role",
    ),
]


async def test_bad_requests_are_refused_with_the_field_named(town: Any) -> None:
    house = await town.open()
    for request, error_class, field in BAD:
        error = await refusal(house, request)
        assert type(error) is error_class, (field, error)
        assert error.metadata["field"] == field
        assert error.request_id
    assert not town.llm.submissions and not town.slm.submissions


async def test_keys_are_needed_where_there_are_any(town: Any) -> None:
    digest = hashlib.sha256(b"secret").hexdigest()
    house = await town.open(api_keys=json.dumps([{"tenant": "acme", "sha256": digest}]))
    for metadata in [(), (("authorization", "Bearer wrong"),), (("authorization", "secret"),)]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await events(house.stub.Generate(chat(), timeout=TIMEOUT_S, metadata=metadata))
        assert isinstance(from_rpc_error(caught.value), Unauthenticated)
    metadata = (("authorization", "Bearer secret"),)
    await events(house.stub.Generate(chat(), timeout=TIMEOUT_S, metadata=metadata))
    assert town.llm.submissions[0].tenant == "acme"


async def test_sequences_of_many_requests_share_one_session(town: Any) -> None:
    house = await town.open()
    results = await asyncio.gather(*(answer(house, chat(f"Hello {n}?")) for n in range(20)))
    assert len(results) == 20
    ids = [submit.sequence_id for submit in town.llm.submissions]
    assert sorted(ids) == list(range(1, 21))
    assert house.metric("active_requests") == 0
