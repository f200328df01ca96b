"""An LLM behind an OpenAI-compatible engine: what it is asked, what comes back, what is missing."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from tests.contract.router.external import external, native, open_over, start
from tests.contract.router.parts import CALL, HELLO, TIMEOUT_S, answer, chat, refusal, snips
from understudy.api.router.v1 import router_pb2
from understudy.api.types.v1 import types_pb2
from understudy.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    PromptTooLong,
    ResourceExhausted,
    Unavailable,
)
from understudy.testing.fake_attention import FakeReply
from understudy.testing.fake_engine import (
    DONE,
    EngineReply,
    FakeEngine,
    call_chunk,
    event,
    finish_chunk,
    spoken,
    text_chunk,
    usage_chunk,
)

GAP = types_pb2.Attempt
CALLED = EngineReply(
    [
        call_chunk("PlayMusic", ""),
        call_chunk("", '{"genre":'),
        call_chunk("", '"jazz"}'),
        finish_chunk("tool_calls"),
        usage_chunk(120, 9),
        DONE,
    ]
)


async def test_text_is_streamed_with_the_engines_own_counts(town: Any) -> None:
    house = await open_over(town, engine := FakeEngine(lambda _: spoken("Hello there, you.")))
    deltas, end = await answer(house, chat())
    assert [delta.text for delta in deltas] == ["Hello ", "there, ", "you."]
    usage = end.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens) == (7, 3, 3)
    (attempt,) = end.decision.attempts
    assert (attempt.pool, attempt.model, attempt.worker) == ("llm", "engine-model", engine.url)
    assert (attempt.cost, attempt.computed_positions) == (10.0, 7)
    assert list(attempt.gaps) == [GAP.GAP_MARGINS, GAP.GAP_RESUME]
    assert not end.decision.is_resumable
    assert house.metric("attempt_gaps_total", pool="llm", gap="resume") == 1
    assert house.metric("external_requests_total", pool="llm", outcome="answered") == 1


async def test_a_request_is_asked_in_the_openai_form(town: Any) -> None:
    house = await open_over(town, engine := FakeEngine(lambda _: spoken("Hello.")))
    sampling = types_pb2.SamplingParams(max_tokens=5, temperature=0.5, top_k=3, seed=11, stop=["X"])
    _, end = await answer(house, chat(sampling=sampling))
    (asked,) = engine.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.body == {
        "model": "engine-model",
        "messages": HELLO,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
        "temperature": 0.5,
        "top_k": 3,
        "seed": 11,
        "stop": ["X"],
    }
    assert asked.headers["accept-encoding"] == "identity"
    assert "authorization" not in asked.headers
    assert GAP.GAP_SEED in end.decision.attempts[0].gaps


async def test_a_plain_prompt_stays_a_plain_completion(town: Any) -> None:
    pieces = [
        event({"choices": [{"index": 0, "text": text, "finish_reason": None}]}) for text in "ab"
    ]
    end_piece = event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
    reply = EngineReply([*pieces, end_piece, usage_chunk(2, 2), DONE])
    house = await open_over(town, engine := FakeEngine(lambda _: reply))
    deltas, end = await answer(house, router_pb2.GenerateRequest(prompt="Once upon"))
    assert "".join(delta.text for delta in deltas) == "ab"
    assert end.finish_reason == types_pb2.FINISH_REASON_LENGTH
    (asked,) = engine.asked
    assert (asked.path, asked.body["prompt"]) == ("/v1/completions", "Once upon")


async def test_a_workload_escalates_to_a_tool_call_of_the_engine(town: Any) -> None:
    town.slm.reply = lambda _: FakeReply(CALL, margin=0.1)
    house = await open_over(town, engine := FakeEngine(lambda _: CALLED))
    (delta,), end = await answer(house, snips())
    (call,) = delta.tool_calls
    assert (call.name, call.arguments_json) == ("PlayMusic", '{"genre":"jazz"}')
    decision = end.decision
    assert decision.reason == types_pb2.Decision.REASON_LOW_CONFIDENCE
    assert [attempt.pool for attempt in decision.attempts] == ["slm", "llm"]
    slm, llm = decision.attempts
    assert not slm.gaps
    assert list(llm.gaps) == [
        GAP.GAP_ADAPTER, GAP.GAP_FORCED_TOKENS, GAP.GAP_GRAMMAR, GAP.GAP_MARGINS,
    ]  # fmt: skip
    assert llm.adapter == ""
    assert all(verdict.is_passed for verdict in llm.verdicts)
    assert slm.cost == pytest.approx(
        (slm.usage.prompt_tokens + slm.usage.completion_tokens) * 100 / 1000
    )
    body = engine.asked[0].body
    assert body["tool_choice"] == "required"
    assert body["parallel_tool_calls"] is False
    assert len(body["tools"]) == 7


async def test_several_calls_are_shown_and_told_to_be_wrong(town: Any) -> None:
    two = [call_chunk("PlayMusic", "{}"), call_chunk("PlayMusic", "{}", index=1)]
    reply = EngineReply([*two, finish_chunk("tool_calls"), usage_chunk(9, 2), DONE])
    house = await open_over(town, FakeEngine(lambda _: reply))
    (delta,), end = await answer(house, snips(model="llm"))
    assert [call.name for call in delta.tool_calls] == ["PlayMusic", "PlayMusic"]
    assert not end.decision.attempts[0].verdicts[0].is_passed


async def test_a_schema_is_passed_on_and_checked_here(town: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    house = await open_over(town, engine := FakeEngine(lambda _: spoken('{"b":1}')))
    _, end = await answer(house, chat(response_schema_json=json.dumps(schema)))
    described = engine.asked[0].body["response_format"]
    assert described["type"] == "json_schema"
    assert described["json_schema"]["schema"] == schema
    (verdict,) = end.decision.attempts[0].verdicts
    assert (verdict.verifier, verdict.is_passed) == ("json_schema", False)
    assert house.metric("validator_disagreements_total", pool="llm") == 0


async def test_after_a_tools_result_the_engine_is_asked_for_words(town: Any) -> None:
    house = await open_over(town, engine := FakeEngine(lambda _: spoken("It plays.")))
    request = snips()
    call = router_pb2.ToolCall(id="c1", name="PlayMusic", arguments_json='{"genre":"jazz"}')
    request.messages.append(
        router_pb2.Message(role=router_pb2.Message.ROLE_ASSISTANT, tool_calls=[call])
    )
    request.messages.append(
        router_pb2.Message(role=router_pb2.Message.ROLE_TOOL, content="ok", tool_call_id="c1")
    )
    deltas, _ = await answer(house, request)
    assert "".join(delta.text for delta in deltas) == "It plays."
    body = engine.asked[0].body
    assert body["tool_choice"] == "none"
    assert body["messages"][1]["tool_calls"][0]["id"] == "c1"
    assert body["messages"][2] == {"role": "tool", "content": "ok", "tool_call_id": "c1"}


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (400, b'{"error":{"message":"bad top_k"}}', InvalidArgument, "bad top_k"),
        (422, b'{"detail":"no such field"}', InvalidArgument, "no such field"),
        (400, b'{"message":"the maximum context length is 8"}', PromptTooLong, "context length"),
        (413, b"", PromptTooLong, "does not fit"),
        (401, b"", FailedPrecondition, "key"),
        (404, b"<html>", FailedPrecondition, "does not know the model"),
        (302, b"", FailedPrecondition, "302"),
    ],
)
async def test_refusals_are_named_and_not_repeated(
    town: Any, status: int, body: bytes, kind: type[Exception], words: str
) -> None:
    engine = FakeEngine(lambda _: EngineReply(status=status, body=body or b" "))
    house = await open_over(town, engine)
    error = await refusal(house, chat())
    assert type(error) is kind
    assert words in error.message
    assert len(engine.asked) == 1


async def test_an_engine_at_its_limit_passes_its_delay_on_and_is_left_alone(town: Any) -> None:
    engine = FakeEngine(lambda _: EngineReply(status=429, headers={"retry-after": "17"}, body=b" "))
    house = await open_over(town, engine)
    first = await refusal(house, chat())
    assert isinstance(first, ResourceExhausted)
    assert first.retry_after_s == 17
    second = await refusal(house, chat())
    assert isinstance(second, ResourceExhausted)
    assert 1 < second.retry_after_s <= 17
    assert len(engine.asked) == 1
    assert house.metric("external_requests_total", pool="llm", outcome="limited") == 1


async def test_another_engine_has_room(town: Any) -> None:
    full = FakeEngine(lambda _: EngineReply(status=429, headers={"retry-after": "60"}, body=b" "))
    free = FakeEngine(lambda _: spoken("Hello."))
    house = await open_over(town, full, free)
    for _ in range(3):
        deltas, _ = await answer(house, chat())
        assert deltas[0].text == "Hello."
    assert len(full.asked) <= 1
    assert len(free.asked) == 3


GARBAGE = [
    pytest.param(EngineReply(status=503, body=b" "), id="5xx"),
    pytest.param(EngineReply([b"data: {nonsense\n\n"]), id="no-json"),
    pytest.param(EngineReply([b"<html>\n"]), id="no-events"),
    pytest.param(EngineReply([b"data: [1]\n\n"]), id="no-object"),
    pytest.param(EngineReply([b"data: \xff\xfe\n\n"]), id="no-utf8"),
    pytest.param(EngineReply([event({"choices": [5]})]), id="no-choice"),
    pytest.param(EngineReply([DONE]), id="no-reason"),
    pytest.param(EngineReply([]), id="empty"),
    pytest.param(EngineReply([], is_cut=True), id="cut"),
    pytest.param(EngineReply(body=b"{}"), id="no-stream"),
    pytest.param(EngineReply([b"data: " + b"x" * (2 << 20)]), id="endless-line"),
    pytest.param(EngineReply([event({"error": {"message": "boom", "code": 500}})]), id="error"),
]


@pytest.mark.parametrize("bad", GARBAGE)
async def test_what_is_broken_before_anything_was_shown_is_tried_again(
    town: Any, bad: EngineReply
) -> None:
    replies = iter([bad])
    engine = FakeEngine(lambda _: next(replies, spoken("Hello again.")))
    house = await open_over(town, engine)
    deltas, _ = await answer(house, chat())
    assert "".join(delta.text for delta in deltas) == "Hello again."
    assert len(engine.asked) == 2
    assert house.metric("replacements_total", pool="llm") == 1


@pytest.mark.parametrize("bad", GARBAGE)
async def test_what_stays_broken_is_unavailable_once_the_patience_ends(
    town: Any, bad: EngineReply
) -> None:
    house = await open_over(town, FakeEngine(lambda _: bad), llm_patience_s=0.2)
    error = await refusal(house, chat())
    assert isinstance(error, Unavailable)
    assert error.metadata["pool"] == "llm"


async def test_a_stream_that_breaks_after_text_was_shown_says_that_it_cannot_go_on(
    town: Any,
) -> None:
    reply = EngineReply([text_chunk("Hello ")], is_cut=True)
    house = await open_over(town, engine := FakeEngine(lambda _: reply))
    call = house.stub.Generate(chat(), timeout=TIMEOUT_S)
    await call.read()
    assert (await call.read()).delta.text == "Hello "
    error = await refusal(house, chat())
    assert isinstance(error, Aborted)
    assert "cannot continue it" in error.message
    assert len(engine.asked) == 2
    call.cancel()


async def test_a_held_answer_survives_a_broken_stream(town: Any) -> None:
    replies = iter([EngineReply([call_chunk("PlayMusic", '{"gen')], is_cut=True)])
    house = await open_over(town, engine := FakeEngine(lambda _: next(replies, CALLED)))
    (delta,), _ = await answer(house, snips(model="llm"))
    assert delta.tool_calls[0].arguments_json == '{"genre":"jazz"}'
    assert len(engine.asked) == 2


async def test_a_caller_that_leaves_closes_the_engines_connection(town: Any) -> None:
    engine = FakeEngine(lambda _: EngineReply([text_chunk("Hello ")], holds=True))
    house = await open_over(town, engine)
    call = house.stub.Generate(chat(), timeout=TIMEOUT_S)
    await call.read()
    await call.read()
    assert engine.num_left == 0
    call.cancel()
    await engine.wait_until(lambda: engine.num_left == 1)


async def test_a_passed_deadline_closes_the_engines_connection(town: Any) -> None:
    engine = FakeEngine(lambda _: EngineReply([], holds=True))
    house = await open_over(town, engine, request_timeout_s=0.3)
    assert isinstance(await refusal(house, chat()), DeadlineExceeded)
    await engine.wait_until(lambda: engine.num_left == 1)
    assert house.metric("external_requests_total", pool="llm", outcome="left") == 1


async def test_an_engine_that_falls_silent_is_given_up(town: Any) -> None:
    replies = iter([EngineReply([], holds=True)])
    engine = FakeEngine(lambda _: next(replies, spoken("Hello.")))
    url = await start(town, engine)
    pools = [external("llm", url, idle_timeout_s=0.2)]
    house = await town.open(pools=json.dumps(pools))
    deltas, _ = await answer(house, chat())
    assert deltas[0].text == "Hello."
    assert house.metric("external_requests_total", pool="llm", outcome="silent") == 1


async def test_missing_counts_are_a_gap_and_not_made_up_silently(town: Any) -> None:
    reply = EngineReply([text_chunk("Hel"), text_chunk("lo."), finish_chunk(), DONE])
    house = await open_over(town, FakeEngine(lambda _: reply))
    _, end = await answer(house, chat())
    assert GAP.GAP_USAGE in end.decision.attempts[0].gaps
    assert end.usage.completion_tokens == 2


async def test_filtered_and_refused_answers_fail_their_verdict(town: Any) -> None:
    reply = EngineReply([text_chunk("He"), finish_chunk("content_filter"), usage_chunk(3, 1), DONE])
    house = await open_over(town, FakeEngine(lambda _: reply))
    _, end = await answer(house, chat())
    (verdict,) = end.decision.attempts[0].verdicts
    assert (verdict.verifier, verdict.is_passed) == ("engine", False)


async def test_a_stopped_engine_is_waited_for_and_found_again(town: Any) -> None:
    engine = FakeEngine(lambda _: spoken("Hello."))
    house = await open_over(town, engine)
    await engine.stop()
    running = asyncio.create_task(answer(house, chat()))
    await engine.start()
    deltas, _ = await running
    assert deltas[0].text == "Hello."


async def test_openai_callers_see_the_gaps(town: Any) -> None:
    house = await open_over(town, FakeEngine(lambda _: spoken("Hello.")))
    async with openai.AsyncOpenAI(
        base_url=f"{house.http_url}/v1", api_key="none", max_retries=0
    ) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="llm", messages=[{"role": "user", "content": "Hello?"}]
        )
        assert raw.headers["x-understudy-gaps"] == "margins,resume"
        assert raw.parse().choices[0].message.content == "Hello."


async def test_both_pools_can_be_external_without_a_tokenizer(town: Any) -> None:
    engine = FakeEngine(lambda _: CALLED)
    url = await start(town, engine)
    pools = [external("slm", url), external("llm", url)]
    house = await town.open(pools=json.dumps(pools), tokenizer=None)
    (delta,), end = await answer(house, snips())
    assert delta.tool_calls[0].name == "PlayMusic"
    assert end.decision.reason == types_pb2.Decision.REASON_NO_CALIBRATOR
    assert [attempt.pool for attempt in end.decision.attempts] == ["llm"]


async def test_an_external_slm_falls_back_to_a_native_llm(town: Any) -> None:
    engine = FakeEngine(lambda _: CALLED)
    pools = [external("slm", await start(town, engine)), native(town, "llm")]
    house = await town.open(pools=json.dumps(pools))
    _, end = await answer(house, chat())
    assert end.decision.pool == "llm"
    assert engine.asked == []
