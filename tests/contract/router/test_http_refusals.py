"""What the OpenAI-compatible edge refuses, and how it tells what went wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest

from tests.contract.router.parts import HELLO
from understudy.errors import ResourceExhausted
from understudy.testing.fake_attention import FakeReply

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
    ({"messages": HELLO, "temperature": 10**400}, "temperature"),
    ({"messages": HELLO, "top_k": 5_000_000_000}, "sampling.top_k"),
    ({"messages": HELLO, "n": 2}, "n"),
    ({"messages": HELLO, "stop": "\ud800"}, "body"),
    ({"messages": [{"role": "user", "content": "x"}] * 2049}, "messages"),
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
