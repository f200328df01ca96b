"""An external engine that refuses, breaks, falls silent or goes: what callers see of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest

from services.router.clients import openai
from services.router.external import breaker
from tests.contract.router.external import CALLED, external, open_over, start
from tests.contract.router.parts import TIMEOUT_S, answer, chat, events, refusal, snips
from understudy.api.router.v1 import router_pb2
from understudy.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PromptTooLong,
    ResourceExhausted,
    Unavailable,
)
from understudy.rpc import from_rpc_error
from understudy.testing.fake_engine import (
    DONE,
    Asked,
    EngineReply,
    FakeEngine,
    call_chunk,
    event,
    finish_chunk,
    spoken,
    text_chunk,
    usage_chunk,
)


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


@pytest.mark.parametrize("bad", GARBAGE[:3])
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
    house = await open_over(town, engine, request_timeout_s=2.0)
    assert isinstance(await refusal(house, chat()), DeadlineExceeded)
    await engine.wait_until(lambda: engine.num_left == 1)
    assert house.metric("external_requests_total", pool="llm", outcome="left") == 1


async def test_an_engine_that_falls_silent_is_given_up(town: Any) -> None:
    replies = iter([EngineReply([], holds=True)])
    engine = FakeEngine(lambda _: next(replies, spoken("Hello.")))
    url = await start(town, engine)
    pools = [external("llm", url, idle_timeout_s=1.5)]
    house = await town.open(pools=json.dumps(pools))
    deltas, _ = await answer(house, chat())
    assert deltas[0].text == "Hello."
    assert house.metric("external_requests_total", pool="llm", outcome="silent") >= 1


async def test_a_stopped_engine_is_waited_for_and_found_again(town: Any) -> None:
    engine = FakeEngine(lambda _: spoken("Hello."))
    house = await open_over(town, engine)
    await engine.stop()
    running = asyncio.create_task(answer(house, chat()))
    await engine.start()
    deltas, _ = await running
    assert deltas[0].text == "Hello."


async def test_a_call_that_is_nested_too_deeply_is_told_to_be_wrong(town: Any) -> None:
    deep = call_chunk("PlayMusic", '{"genre":' + "[" * 200_000)
    reply = EngineReply([deep, finish_chunk("tool_calls"), usage_chunk(9, 9), DONE])
    house = await open_over(town, FakeEngine(lambda _: reply))
    (delta,), end = await answer(house, snips(model="llm"))
    assert delta.tool_calls[0].name == "PlayMusic"
    assert not end.decision.attempts[0].verdicts[0].is_passed


@pytest.mark.parametrize("request_", [chat(response_schema_json='{"type":"array"}'), snips()])
async def test_text_that_is_nested_too_deeply_fails_its_verdict(town: Any, request_: Any) -> None:
    request_.model = "llm"
    reply = EngineReply([text_chunk("[" * 200_000), finish_chunk(), usage_chunk(9, 9), DONE])
    house = await open_over(town, FakeEngine(lambda _: reply))
    (delta,), end = await answer(house, request_)
    assert delta.text == "[" * 200_000
    assert not end.decision.attempts[0].verdicts[0].is_passed


async def test_an_engine_that_broke_once_is_asked_before_one_that_is_at_its_limit(
    town: Any,
) -> None:
    asked: list[str] = []
    limit = EngineReply(status=429, headers={"retry-after": "60"}, body=b" ")
    broken = EngineReply(status=503, body=b" ")

    def reply(name: str) -> EngineReply:
        """The engine that is asked first breaks at every other request; the other is full."""
        asked.append(name)
        if name != asked[0]:
            return limit
        return broken if asked.count(name) % 2 else spoken("Hello.")

    house = await open_over(
        town, FakeEngine(lambda _: reply("one")), FakeEngine(lambda _: reply("two"))
    )
    for _ in range(2):
        deltas, _ = await answer(house, chat())
        assert "".join(delta.text for delta in deltas) == "Hello."
    assert len(asked) == 5
    assert asked[1] != asked[0]
    assert set(asked[2:]) == {asked[0]}


@pytest.mark.parametrize("code", [400, 404, 413, 429])
async def test_a_stream_that_reports_a_refusal_after_text_was_shown_is_aborted(
    town: Any, code: int, valkey_url: str
) -> None:
    wrong = event({"error": {"message": "no", "code": code}})
    house = await open_over(
        town,
        engine := FakeEngine(lambda _: EngineReply([text_chunk("Hello "), wrong])),
        control_redis=valkey_url,
    )
    call = house.stub.Generate(chat(), timeout=TIMEOUT_S)
    token = (await call.read()).started.resume_token
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(call)
    assert isinstance(from_rpc_error(caught.value), Aborted)
    resuming = router_pb2.ResumeRequest(resume_token=token, received_deltas=1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(house.stub.Resume(resuming, timeout=TIMEOUT_S))
    assert isinstance(from_rpc_error(caught.value), NotFound), "the journal knows that it was lost"
    assert len(engine.asked) == 1


async def test_a_request_that_breaks_an_engine_does_not_close_it_to_others(town: Any) -> None:
    def reply(asked: Asked) -> EngineReply:
        is_poison = asked.body["messages"][0]["content"] == "poison"
        return EngineReply(status=500, body=b" ") if is_poison else spoken("Hello.")

    house = await open_over(town, engine := FakeEngine(reply), llm_patience_s=600.0)
    error = await refusal(house, chat("poison"))
    assert isinstance(error, Unavailable)
    assert "3 times" in error.message
    assert len(engine.asked) == 3
    deltas, end = await answer(house, chat())
    assert deltas[0].text == "Hello."
    assert not end.decision.attempts[0].gaps[2:]
    assert len(engine.asked) == 4


async def test_metrics_tell_which_engines_take_requests(
    town: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai, "LOOK_INTERVAL_S", 0.01)
    monkeypatch.setattr(breaker, "FIRST_REST_S", 3600.0)
    monkeypatch.setattr(breaker, "LONGEST_REST_S", 3600.0)
    broken = FakeEngine(lambda _: EngineReply(status=500, body=b" "))
    other = FakeEngine(lambda _: spoken("Hello."), model="another-model")
    house = await open_over(town, broken, other, llm_patience_s=0.2)

    def states() -> list[float]:
        names = ("available", "resting", "away")
        return [house.metric("external_endpoints", pool="llm", state=name) for name in names]

    assert states() == [1, 0, 1]
    for _ in range(breaker.MAX_FAILURES):
        await refusal(house, chat())
    assert states() == [0, 1, 1]
    other.cards = {"data": [{"id": "engine-model"}]}
    num_looks = other.num_looks
    await other.wait_until(lambda: other.num_looks >= num_looks + 2)
    deltas, _ = await answer(house, chat())
    assert deltas[0].text == "Hello."
    assert states() == [1, 1, 0]
