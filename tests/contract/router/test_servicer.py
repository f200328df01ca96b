"""RouterService in process: who answers, why, and what it cost."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.contract.router.parts import CALL, TIMEOUT_S, answer, chat, refusal, snips
from understudy.api.router.v1 import router_pb2
from understudy.api.types.v1 import types_pb2
from understudy.errors import FailedPrecondition, ResourceExhausted
from understudy.testing.fake_attention import FakeReply
from understudy.testing.tiny_tokenizer import tiny_tokenizer

Reason = types_pb2.Decision


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


async def test_sequences_of_many_requests_share_one_session(town: Any) -> None:
    house = await town.open()
    results = await asyncio.gather(*(answer(house, chat(f"Hello {n}?")) for n in range(20)))
    assert len(results) == 20
    ids = [submit.sequence_id for submit in town.llm.submissions]
    assert sorted(ids) == list(range(1, 21))
    assert house.metric("active_requests") == 0
