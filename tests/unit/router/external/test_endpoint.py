"""One endpoint's state over time, against a real engine on loopback."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from services.router.clients.openai import EndpointClient, EndpointSettings
from services.router.external.port import Question
from understudy.errors import Unavailable
from understudy.testing.fake_engine import DONE, EngineReply, FakeEngine, finish_chunk, text_chunk

QUESTION = Question("chat/completions", {"model": "engine-model"}, "")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


async def ask(client: EndpointClient) -> str:
    async with aclosing(client.ask(QUESTION)) as stream:
        return "".join([heard.text async for heard in stream])


async def test_an_endpoint_that_fails_rests_and_is_tried_by_one_request() -> None:
    replies = iter([EngineReply(status=503, body=b" ")] * 3 + [EngineReply([], holds=True)])
    answer = EngineReply([text_chunk("Hi"), finish_chunk(), DONE])
    engine, clock, outcomes = FakeEngine(lambda _: next(replies, answer)), Clock(), list[str]()
    settings = EndpointSettings("llm", "engine-model", None, None, 5.0, 5.0)
    client = EndpointClient(await engine.start(), settings, outcomes.append, clock)
    assert client.state == "away"
    watching = asyncio.create_task(client.watch())
    await engine.wait_until(lambda: engine.num_looks == 1)
    async with asyncio.timeout(60):
        while client.state != "available":  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert client.max_context_tokens == 4096
    for _ in range(3):
        assert client.state == "available"
        with pytest.raises(Unavailable, match="503"):
            await ask(client)
    assert client.state == "resting"
    clock.now_s += 1.01
    assert client.state == "available"
    trying = asyncio.create_task(ask(client))
    await engine.wait_until(lambda: len(engine.asked) == 4)
    assert client.state == "resting", "one try is enough"
    trying.cancel()
    await asyncio.gather(trying, return_exceptions=True)
    assert client.state == "available"
    assert await ask(client) == "Hi"
    assert outcomes == ["failed"] * 3 + ["left", "answered"]
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert client.state == "away"
    await engine.stop()


async def test_requests_follow_each_other_on_one_connection() -> None:
    answer = EngineReply([text_chunk("Hi"), finish_chunk(), DONE])
    engine, outcomes = FakeEngine(lambda _: answer, keeps_alive=True), list[str]()
    settings = EndpointSettings("llm", "engine-model", None, None, 30.0, 30.0)
    client = EndpointClient(await engine.start(), settings, outcomes.append)
    assert [await ask(client) for _ in range(2)] == ["Hi", "Hi"]
    assert engine.num_connections == 1
    await close(client, engine)


async def test_an_answer_does_not_wait_for_an_engine_that_leaves_its_response_open() -> None:
    answer = EngineReply([text_chunk("Hi"), finish_chunk(), DONE], holds=True)
    engine, outcomes = FakeEngine(lambda _: answer, keeps_alive=True), list[str]()
    settings = EndpointSettings("llm", "engine-model", None, None, 30.0, 3600.0)
    client = EndpointClient(await engine.start(), settings, outcomes.append)
    assert await ask(client) == "Hi"
    await engine.wait_until(lambda: engine.num_left == 1)
    assert outcomes == ["answered"]
    await close(client, engine)


async def test_one_request_that_fails_again_and_again_is_one_failure() -> None:
    engine, outcomes = FakeEngine(lambda _: EngineReply(status=500, body=b" ")), list[str]()
    settings = EndpointSettings("llm", "engine-model", None, None, 30.0, 30.0)
    client = EndpointClient(await engine.start(), settings, outcomes.append)
    watching = asyncio.create_task(client.watch())
    await engine.wait_until(lambda: engine.num_looks == 1)
    async with asyncio.timeout(60):
        while client.state != "available":  # noqa: ASYNC110
            await asyncio.sleep(0)
    for num_before in range(5):
        with pytest.raises(Unavailable, match="500"):
            await anext(client.ask(QUESTION, is_again=num_before > 0))
    assert client.state == "available"
    assert outcomes == ["failed"] * 5
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await engine.stop()


async def close(client: EndpointClient, engine: FakeEngine) -> None:
    """A client's connections end with its watch."""
    watching = asyncio.create_task(client.watch())
    await engine.wait_until(lambda: engine.num_looks == 1)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await engine.stop()
