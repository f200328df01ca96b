"""The OpenAI-compatible edge, as the `openai` client and raw HTTP see it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import openai
import pytest

from tests.contract.router.parts import HELLO
from understudy.testing.fake_attention import FakeReply
from understudy.workloads import find_workload

JAZZ: list[Any] = [{"role": "user", "content": "play some jazz music"}]
BRIEF: Any = {"type": "text", "text": "Be brief."}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


async def test_chat_answers_with_exact_usage_and_the_decision_in_headers(client: Any) -> None:
    raw = await client.chat.completions.with_raw_response.create(model="auto", messages=HELLO)
    answer = raw.parse()
    assert answer.choices[0].message.content == "Hello."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == len("Hello.") + 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 7
    assert raw.headers["x-understudy-pool"] == "llm"
    assert raw.headers["x-understudy-reason"] == "no_calibrator"
    assert float(raw.headers["x-understudy-cost"]) == answer.usage.total_tokens
    assert answer.id == f"chatcmpl-{raw.headers['x-request-id']}"


async def test_streamed_chat_ends_with_a_usage_chunk_without_choices(client: Any) -> None:
    stream = await client.chat.completions.create(
        model="llm", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    *pieces, end, usage = chunks
    assert "".join(chunk.choices[0].delta.content for chunk in pieces) == "Hello."
    assert all(chunk.choices[0].delta.content for chunk in pieces), "no empty early delta"
    assert pieces[0].choices[0].delta.role == "assistant"
    assert end.choices[0].finish_reason == "stop"
    assert usage.choices == [] and usage.usage.completion_tokens == 7
    assert usage.model_extra["understudy"]["pool"] == "llm"
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_stream_without_options_has_no_usage(client: Any) -> None:
    stream = await client.chat.completions.create(model="llm", messages=HELLO, stream=True)
    assert all([chunk.choices and chunk.usage is None async for chunk in stream])


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_tools_are_called(client: Any, is_streamed: bool) -> None:
    tools: Any = [dict(tool) for tool in find_workload("snips").tools]
    created = await client.chat.completions.create(
        model="auto", messages=JAZZ, tools=tools, stream=is_streamed
    )
    if is_streamed:
        first, end = [chunk.choices[0] async for chunk in created]
        (call,), finish = first.delta.tool_calls, end.finish_reason
    else:
        (call,), finish = created.choices[0].message.tool_calls, created.choices[0].finish_reason
        assert created.choices[0].message.content is None
    assert call.function.name == "PlayMusic"
    assert json.loads(call.function.arguments) == {"genre": "jazz"}
    assert finish == "tool_calls"


async def test_json_schema_answers_satisfy_the_schema(town: Any, client: Any) -> None:
    town.llm.reply = lambda _: FakeReply('{"city":"Kiel"}')
    answer = await client.chat.completions.create(
        model="auto",
        messages=HELLO,
        response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}},
    )
    assert json.loads(answer.choices[0].message.content) == {"city": "Kiel"}
    (submit,) = town.llm.submissions
    assert json.loads(submit.grammar.source) == SCHEMA


async def test_json_object_asks_for_any_object(town: Any, client: Any) -> None:
    town.llm.reply = lambda _: FakeReply("{}")
    answer = await client.chat.completions.create(
        model="auto", messages=HELLO, response_format={"type": "json_object"}
    )
    assert answer.choices[0].message.content == "{}"


async def test_an_answer_against_its_schema_is_counted_and_told(town: Any, house: Any) -> None:
    town.llm.reply = lambda _: FakeReply('{"city":3}')
    async with openai.AsyncOpenAI(base_url=f"{house.http_url}/v1", api_key="x") as client:
        await client.chat.completions.create(
            model="auto",
            messages=HELLO,
            response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}},
        )
    assert house.metric("validator_disagreements_total", pool="llm") == 1


async def test_completions_continue_raw_text(town: Any, client: Any) -> None:
    answer = await client.completions.create(model="llm", prompt="Once", max_tokens=3)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Hel", "length")
    assert answer.usage.prompt_tokens == 4
    stream = await client.completions.create(model="llm", prompt="Once", stream=True)
    texts = [chunk.choices[0].text async for chunk in stream]
    assert "".join(texts) == "Hello."
    assert town.llm.submissions[0].sampling.max_tokens == 3


async def test_models_are_listed_and_found(client: Any) -> None:
    assert [model.id async for model in client.models.list()] == ["auto", "slm", "llm"]
    assert (await client.models.retrieve("slm")).model_extra["version"] == "fake-slm@abababab"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-9")


async def test_unknown_keys_are_ignored_and_known_ones_reach_the_worker(
    town: Any, client: Any
) -> None:
    await client.chat.completions.create(
        model="auto",
        messages=[{"role": "developer", "content": [BRIEF]}, *HELLO],
        temperature=0.5, top_p=0.9, seed=7, stop="!", max_completion_tokens=9, user="me",
        extra_body={"ignore_eos": True, "top_k": 5, "repetition_penalty": 1.1},
    )  # fmt: skip
    sampling = town.llm.submissions[0].sampling
    assert (sampling.max_tokens, sampling.seed, sampling.top_k) == (9, 7, 5)
    assert sampling.ignore_eos and list(sampling.stop) == ["!"]
    assert sampling.temperature == pytest.approx(0.5)


async def test_the_callers_request_id_is_echoed(http: Any) -> None:
    headers = {"x-request-id": "abc-1"}
    async with http.post("/v1/completions", json={"prompt": "x"}, headers=headers) as response:
        assert response.headers["x-request-id"] == "abc-1"
    async with http.get("/v1/models", headers={"x-request-id": "spaces are bad"}) as response:
        assert len(response.headers["x-request-id"]) == 32


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_client_that_leaves_cancels_its_sequence(
    town: Any, http: Any, is_streamed: bool
) -> None:
    town.llm.reply = lambda _: FakeReply(hold_after=2)
    body = {"prompt": "x", "stream": is_streamed}
    asking = asyncio.create_task(_read(http, body))
    await town.llm.wait_until(lambda: len(town.llm.submissions) == 1)
    asking.cancel()
    await town.llm.wait_until(lambda: town.llm.cancelled == [town.llm.submissions[0].sequence_id])


async def _read(http: aiohttp.ClientSession, body: dict[str, Any]) -> bytes:
    async with http.post("/v1/completions", json=body) as response:
        return await response.read()


async def test_health_follows_readiness(house: Any, http: Any) -> None:
    house.health.mark_unready("a test")
    async with http.get("/health") as response:
        assert response.status == 503
