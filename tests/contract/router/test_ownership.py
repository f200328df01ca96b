"""Who writes an answer: one stream at a time, and another one where that stream is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from services.router.journal import PREFIX, Journal, TakenOverError
from services.router.requests import Request
from services.router.sealing import Sealer
from tests.contract.router.parts import TIMEOUT_S, chat, events
from understudy.testing.fake_attention import FakeReply

ASKED = Request(prompt="Hello?", idempotency_key="race")


@pytest.fixture
async def redis(valkey_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(valkey_url) as client:
        await client.flushdb()
        yield client


@pytest.fixture
def journal(redis: Redis) -> Journal:
    return Journal(redis, Sealer(bytes(32)), ttl_s=60)


def text_of(found: list[Any]) -> str:
    return "".join(event.delta.text for event in found if event.WhichOneof("event") == "delta")


async def test_racing_requests_with_one_key_share_one_entry(journal: Journal) -> None:
    entries = await asyncio.gather(*(journal.open("t", ASKED, f"r{n}") for n in range(8)))
    tokens = {entry.token for entry in entries if entry is not None}
    assert len(tokens) == 1
    heads = {str(entry.records) for entry in entries if entry is not None}
    assert len(heads) == 1, "the first one wrote the head, the others read it"
    outcomes = await asyncio.gather(
        *(entry.append({"kind": "path"}) for entry in entries if entry), return_exceptions=True
    )
    assert outcomes.count(None) == 1
    assert sum(isinstance(outcome, TakenOverError) for outcome in outcomes) == 7


async def test_an_entry_that_is_given_up_or_has_lapsed_is_taken_by_who_follows(
    journal: Journal, redis: Redis
) -> None:
    first = await journal.open("t", Request(prompt="Hello?"), "r")
    assert first is not None
    second = await journal.find("t", first.token)
    async with second.kept():
        await second.append({"kind": "path"}, {"kind": "delta"})
        assert not await first.look(), "its owner is alive"
        assert [record["kind"] for record in first.records] == ["head", "path", "delta"]
    assert await first.look(), "its owner gave it up"
    (owner_key,) = [key async for key in redis.scan_iter(f"{PREFIX}*:owner")]
    assert await redis.get(owner_key) == first._owner.encode()
    assert 0 < await redis.pttl(owner_key) <= 1000 * journal.lease_s
    await redis.delete(owner_key)
    assert await second.look(), "its owner's lease has lapsed"
    with pytest.raises(TakenOverError):
        first.is_live = True
        await first.append({"kind": "delta"})


async def test_an_owner_whose_lease_lapsed_unnoticed_goes_on(
    journal: Journal, redis: Redis
) -> None:
    entry = await journal.open("t", Request(prompt="Hello?"), "r")
    assert entry is not None
    async for key in redis.scan_iter(f"{PREFIX}*:owner"):
        await redis.delete(key)
    await entry.append({"kind": "path"})
    assert entry.is_live
    late = await journal.find("t", entry.token)
    await late.append({"kind": "delta"})
    async for key in redis.scan_iter(f"{PREFIX}*:owner"):
        await redis.delete(key)
    with pytest.raises(TakenOverError):
        await entry.append({"kind": "delta"})


async def test_racing_callers_with_one_key_all_see_the_answer(town: Any, valkey_url: str) -> None:
    house = await town.open(control_redis=valkey_url)
    request = chat(idempotency_key="many")
    calls = [events(house.stub.Generate(request, timeout=TIMEOUT_S)) for _ in range(6)]
    for found in await asyncio.gather(*calls):
        assert text_of(found) == "Hello."
        assert found[-1].WhichOneof("event") == "finished"


async def test_a_follower_finishes_the_answer_when_its_owner_leaves(
    town: Any, valkey_url: str
) -> None:
    holds = iter([3, 3])
    town.llm.reply = lambda _: FakeReply("Hello.", hold_after=next(holds, None))
    house = await town.open(control_redis=valkey_url)
    request = chat(idempotency_key="left")
    follower = house.stub.Generate(request, timeout=TIMEOUT_S)
    seen = [await follower.read() for _ in range(4)]
    held, town.llm._released = town.llm._released, asyncio.Event()
    owner = house.stub.Generate(request, timeout=TIMEOUT_S)
    [await owner.read() for _ in range(4)]
    await town.llm.wait_until(lambda: len(town.llm.submissions) == 2)
    held.set()
    await town.llm.wait_until(lambda: town.llm.cancelled == [1])
    owner.cancel()
    rest = await events(follower)
    assert text_of(seen) + text_of(rest) == "Hello."
    assert rest[-1].finished.decision.is_resumable
    assert town.llm.submissions[-1].committed_tokens == 3


async def test_a_follower_finishes_the_answer_when_its_owners_router_died(
    town: Any, valkey_url: str, redis: Redis
) -> None:
    holds = iter([3])
    town.llm.reply = lambda _: FakeReply("Hello.", hold_after=next(holds, None))
    house = await town.open(control_redis=valkey_url)
    call = house.stub.Generate(chat(), timeout=TIMEOUT_S)
    seen = [await call.read() for _ in range(4)]
    (owner_key,) = [key async for key in redis.scan_iter(f"{PREFIX}*:owner")]
    await redis.set(owner_key, "a router that is dead by now", px=200)
    town.llm.release()
    rest = await events(call)
    assert text_of(seen) + text_of(rest) == "Hello."
    assert rest[-1].finished.decision.is_resumable
