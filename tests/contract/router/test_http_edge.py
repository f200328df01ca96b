"""The OpenAI-compatible edge, as the `openai` client and raw HTTP see it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest

from understudy.errors import ResourceExhausted
from understudy.testing.fake_attention import FakeReply
from understudy.workloads import find_workload

CALL = '{"name":"PlayMusic","arguments":{"genre":"jazz"}}'
HELLO: list[Any] = [{"role": "user", "content": "Hello?"}]
JAZZ: list[Any] = [{"role": "user", "content": "play some jazz music"}]
BRIEF: Any = {"type": "text", "text": "Be brief."}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture
async def house(town: Any) -> Any:
    return await town.open()


@pytest.fixture
async def client(house: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{house.http_url}/v1", api_key="none", max_retries=0, timeout=20
    ) as made:
        yield made


@pytest.fixture
async def http(house: Any) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(house.http_url) as session:
        yield session


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


BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": " "}]}, "messages[0].content"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0]",
    ),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": HELLO, "max_tokens": -1}, "sampling.max_tokens"),
    ({"messages": HELLO, "max_tokens": "many"}, "max_tokens"),
    ({"messages": HELLO, "temperature": "hot"}, "temperature"),
    ({"messages": HELLO, "n": 2}, "n"),
    ({"messages": HELLO, "stop": [1]}, "stop"),
    ({"messages": HELLO, "stream": "yes"}, "stream"),
    ({"messages": HELLO, "tools": [{"type": "retrieval"}]}, "tools[0]"),
    ({"messages": HELLO, "tool_choice": "sometimes"}, "tool_choice"),
    ({"messages": HELLO, "tool_choice": "required"}, "tool_choice"),
    ({"messages": HELLO, "response_format": {"type": "xml"}}, "response_format.type"),
    (
        {"messages": HELLO, "response_format": {"type": "json_schema"}},
        "response_format.json_schema.schema",
    ),
    (
        {
            "messages": HELLO,
            "response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}},
        },
        "response_schema_json",
    ),
]


async def test_bad_bodies_get_openai_errors_with_the_field_named(http: Any) -> None:
    for body, field in BAD_CHATS:
        async with http.post("/v1/chat/completions", json=body) as response:
            error = (await response.json())["error"]
            assert response.status == 400, error
            assert error["type"] == "invalid_request_error"
            assert error["param"] == field
            assert error["request_id"] == response.headers["x-request-id"]


async def test_bodies_that_are_no_json_object_are_refused(http: Any) -> None:
    for data in (b"", b"{", b"[]", b"\xff", b"[" * 100_000):
        async with http.post("/v1/chat/completions", data=data) as response:
            assert response.status == 400
    async with http.post("/v1/completions", json={"prompt": ["a", "b"]}) as response:
        assert (await response.json())["error"]["param"] == "prompt"


async def test_a_body_of_ten_megabytes_is_refused(client: Any, http: Any) -> None:
    text = "x" * 10_000_000
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": text}]
        )
    assert caught.value.status_code == 413
    assert caught.value.code == "body_too_large"

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(text), 1 << 20):
            yield text[start : start + (1 << 20)].encode()

    async with http.post("/v1/chat/completions", data=parts()) as response:
        assert response.status == 413


async def test_unknown_models_and_paths_are_not_found(http: Any) -> None:
    body = {"model": "gpt-9", "messages": HELLO}
    async with http.post("/v1/chat/completions", json=body) as response:
        assert response.status == 404
        assert (await response.json())["error"]["param"] == "model"
    async with http.get("/v1/nothing") as response:
        assert response.status == 404


async def test_the_callers_request_id_is_echoed(http: Any) -> None:
    headers = {"x-request-id": "abc-1"}
    async with http.post("/v1/completions", json={"prompt": "x"}, headers=headers) as response:
        assert response.headers["x-request-id"] == "abc-1"
    async with http.get("/v1/models", headers={"x-request-id": "spaces are bad"}) as response:
        assert len(response.headers["x-request-id"]) == 32


async def test_overload_is_429_with_a_delay_and_a_lost_pool_503(town: Any, http: Any) -> None:
    full = ResourceExhausted("No free blocks.", retry_after_s=2.5)
    town.llm.reply = lambda _: FakeReply(fail_after=0, error=full)
    async with http.post("/v1/completions", json={"prompt": "x", "stream": True}) as response:
        assert response.status == 429
        assert response.headers["retry-after"] == "3"
        assert (await response.json())["error"]["type"] == "rate_limit_error"


async def test_a_failure_after_the_first_chunk_is_told_in_the_stream(town: Any) -> None:
    town.llm.reply = lambda _: FakeReply(hold_after=3)
    house = await town.open(request_timeout_s=0.5)
    async with aiohttp.ClientSession(house.http_url) as http:
        body = {"prompt": "x", "stream": True}
        async with http.post("/v1/completions", json=body) as response:
            assert response.status == 200
            lines = (await response.text()).strip().split("\n\n")
    error = json.loads(lines[-1].removeprefix("data: "))["error"]
    assert error["code"] == "deadline_exceeded"


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


async def test_keys_are_asked_for_and_health_is_open(town: Any) -> None:
    digest = hashlib.sha256(b"secret").hexdigest()
    house = await town.open(api_keys=json.dumps([{"tenant": "acme", "sha256": digest}]))
    for key, error in (("wrong", openai.AuthenticationError), ("secret", None)):
        async with openai.AsyncOpenAI(base_url=f"{house.http_url}/v1", api_key=key) as client:
            if error is None:
                await client.chat.completions.create(model="llm", messages=HELLO)
                continue
            for call in (
                client.chat.completions.create(model="llm", messages=HELLO),
                client.models.list(),
            ):
                with pytest.raises(error):
                    await call
    async with aiohttp.ClientSession(house.http_url) as http, http.get("/health") as response:
        assert (response.status, await response.json()) == (200, {"status": "ready"})


async def test_health_follows_readiness(house: Any, http: Any) -> None:
    house.health.mark_unready("a test")
    async with http.get("/health") as response:
        assert response.status == 503


async def test_a_bug_is_an_internal_error_without_its_cause(
    town: Any, http: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> None:
        raise RuntimeError("the secret cause")

    monkeypatch.setattr("services.router.plans.Planner.plan", lambda self, request: broken(request))
    async with http.post("/v1/completions", json={"prompt": "x"}) as response:
        assert response.status == 500
        text = await response.text()
    assert "internal error" in text and "secret cause" not in text
