"""The I/O side of the tier: whatever the kvstore does, fewer payloads is the worst of it."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry

from services.attention.metrics import TierMetrics
from services.attention.sharing import Chain
from services.attention.tiering import (
    MAX_FAILURES,
    MAX_RATE_AGE_S,
    MAX_WRITING_BYTES,
    StoreTier,
)
from understudy.chunks import Chunk, chain_hashes, chain_root, encode_chunk
from understudy.errors import Unavailable

ROOT, CONFIG = b"r" * 32, b"c" * 32
HASHES = tuple(chain_hashes(ROOT, CONFIG, range(12), 4))
CHAIN = Chain("acme", CONFIG, HASHES, "")


def chunk(index: int, payload: bytes = b"12345678") -> Chunk:
    parent = HASHES[index - 1] if index else chain_root(ROOT, CONFIG)
    return Chunk(CONFIG, HASHES[index], parent, 4, payload)


@dataclass
class FakeStore:
    """A kvstore that misbehaves on demand."""

    data: list[bytes] = field(default_factory=list)
    num_stored: int | None = None
    error: Exception | None = None
    stalls: bool = False
    on_chunk: Callable[[], None] = lambda: None
    puts: list[tuple[Chain, Chunk]] = field(default_factory=list)
    may_put: asyncio.Event = field(default_factory=asyncio.Event)

    async def lookup(self, chain: Chain, timeout_s: float) -> int:
        if self.error is not None:
            raise self.error
        return len(self.data) if self.num_stored is None else self.num_stored

    async def get(self, chain: Chain, timeout_s: float) -> AsyncGenerator[bytes, None]:
        for data in self.data:
            self.on_chunk()
            await asyncio.sleep(0)
            yield data
        if self.stalls:
            await asyncio.Event().wait()

    async def put(self, entries: Sequence[tuple[Chain, Chunk]], timeout_s: float) -> int:
        await self.may_put.wait()
        if self.error is not None:
            raise self.error
        self.puts.extend(entries)
        return len(entries)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@dataclass
class Clock:
    """A clock that the test may put forward."""

    ahead_s: float = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def tier(
    store: FakeStore, registry: CollectorRegistry, clock: Clock
) -> AsyncIterator[StoreTier]:
    loop, metrics = asyncio.get_running_loop(), TierMetrics(registry)
    tier = StoreTier(store, loop, metrics, timeout_s=0.05, clock_s=clock)
    yield tier
    await tier.aclose()


async def load(tier: StoreTier) -> list[bytes]:
    done: asyncio.Future[list[memoryview]] = asyncio.get_running_loop().create_future()
    tier.load(CHAIN, 4, 8, done.set_result)
    return [bytes(payload) for payload in await asyncio.wait_for(done, 30)]


async def settle(tier: StoreTier) -> None:
    """Wait for what the tier was asked to do."""
    await asyncio.sleep(0)
    await asyncio.gather(*tier._tasks)


def failures(registry: CollectorRegistry, operation: str) -> float | None:
    return registry.get_sample_value(
        "understudy_attention_kv_failures_total", {"operation": operation}
    )


async def test_stored_run_comes_as_payloads(tier: StoreTier, store: FakeStore):
    store.data = [encode_chunk(chunk(0, b"first---")), encode_chunk(chunk(1, b"second--"))]
    assert await load(tier) == [b"first---", b"second--"]


async def test_nothing_stored_is_a_miss_not_a_failure(tier: StoreTier, registry: CollectorRegistry):
    assert await load(tier) == []
    assert failures(registry, "read") is None


async def test_corrupt_chunk_ends_the_run(
    tier: StoreTier, store: FakeStore, registry: CollectorRegistry
):
    damaged = bytearray(encode_chunk(chunk(1)))
    damaged[-1] ^= 1
    store.data = [encode_chunk(chunk(0)), bytes(damaged), encode_chunk(chunk(2))]
    assert len(await load(tier)) == 1
    assert failures(registry, "decode") == 1


async def test_chunk_of_another_prefix_is_never_taken(tier: StoreTier, store: FakeStore):
    store.data = [encode_chunk(chunk(1))]
    assert await load(tier) == []


async def test_stalled_read_keeps_what_came(
    tier: StoreTier, store: FakeStore, registry: CollectorRegistry
):
    store.data, store.num_stored, store.stalls = [encode_chunk(chunk(0))], 3, True
    assert len(await load(tier)) == 1
    assert failures(registry, "read") == 1


async def test_store_that_is_too_slow_for_a_read_is_no_failing_store(
    tier: StoreTier, store: FakeStore
):
    store.data, store.num_stored, store.stalls = [encode_chunk(chunk(0))], 3, True
    for _ in range(MAX_FAILURES):
        assert len(await load(tier)) == 1
    assert tier.room_bytes()
    tier.note_prefill(10**9, 1.0)
    assert not tier.is_worth_loading(12, 24)  # its rate is known by what it brought


async def test_store_that_brings_nothing_at_all_is_left_alone(tier: StoreTier, store: FakeStore):
    store.num_stored, store.stalls = 3, True
    for _ in range(MAX_FAILURES):
        assert await load(tier) == []
    assert not tier.room_bytes()


async def test_first_read_goes_on_as_long_as_chunks_come(
    tier: StoreTier, store: FakeStore, monkeypatch: pytest.MonkeyPatch
):
    loop = asyncio.get_running_loop()
    now_s = loop.time()

    def pass_time() -> None:
        nonlocal now_s
        now_s += 0.04

    monkeypatch.setattr(loop, "time", lambda: now_s)
    store.on_chunk = pass_time
    store.data = [encode_chunk(chunk(index)) for index in range(3)]
    assert len(await load(tier)) == 3


async def test_more_chunks_than_asked_for_are_ignored(tier: StoreTier, store: FakeStore):
    store.data, store.num_stored = [encode_chunk(chunk(0)), encode_chunk(chunk(1))], 1
    assert len(await load(tier)) == 1


async def test_dead_store_is_left_alone_after_some_failures(tier: StoreTier, store: FakeStore):
    store.error = Unavailable("away")
    for _ in range(MAX_FAILURES):
        assert tier.is_worth_loading(64, 8)
        assert await load(tier) == []
    assert not tier.is_worth_loading(64, 8)
    assert not tier.room_bytes()


async def test_slow_fetch_is_not_worth_it_once_measured(tier: StoreTier, store: FakeStore):
    store.data = [encode_chunk(chunk(0))]
    await load(tier)
    tier.note_prefill(10**9, 1.0)
    assert not tier.is_worth_loading(1, 8)


async def test_store_that_was_slow_once_is_measured_again_after_a_while(
    tier: StoreTier, store: FakeStore, clock: Clock
):
    store.data = [encode_chunk(chunk(0))]
    store.may_put.set()
    await load(tier)
    tier.store("acme", "", [chunk(1)])
    await settle(tier)
    tier.note_prefill(10**9, 1.0)
    assert not tier.is_worth_loading(1, 8)
    assert not tier.is_worth_swapping(1, 8)
    clock.ahead_s += MAX_RATE_AGE_S
    assert tier.is_worth_loading(1, 8)
    assert tier.is_worth_swapping(1, 8)


async def test_swap_is_not_worth_it_once_writing_proved_slow(tier: StoreTier, store: FakeStore):
    assert tier.is_worth_swapping(64, 8)
    store.data = [encode_chunk(chunk(0))]
    await load(tier)
    store.may_put.set()
    tier.store("acme", "", [chunk(1)])
    await settle(tier)
    tier.note_prefill(10**9, 1.0)
    assert not tier.is_worth_swapping(1, 10**9)
    assert not tier.is_worth_swapping(1, MAX_WRITING_BYTES + 1)


async def test_chunks_are_written_in_the_order_given(tier: StoreTier, store: FakeStore):
    store.may_put.set()
    chunks = [chunk(2), chunk(1)]
    tier.store("acme", "", chunks)
    await settle(tier)
    assert [entry[1] for entry in store.puts] == chunks
    assert [entry[0].hashes for entry in store.puts] == [(HASHES[2],), (HASHES[1],)]


async def test_writes_in_flight_are_bounded_and_freed(tier: StoreTier, store: FakeStore):
    assert tier.room_bytes() == MAX_WRITING_BYTES
    tier.store("acme", "", [chunk(0)])
    assert tier.room_bytes() == MAX_WRITING_BYTES - 8
    store.error = Unavailable("away")
    store.may_put.set()
    await settle(tier)
    assert tier.room_bytes() == MAX_WRITING_BYTES
    assert store.puts == []


async def test_chunks_that_could_not_be_written_are_told_once(tier: StoreTier, store: FakeStore):
    store.may_put.set()
    tier.store("acme", "", [chunk(0)])
    await settle(tier)
    assert tier.take_absent() == []
    store.error = Unavailable("away")
    tier.store("acme", "", [chunk(2), chunk(1)])
    await settle(tier)
    assert tier.take_absent() == [HASHES[2], HASHES[1]]
    assert tier.take_absent() == []


async def test_chunks_that_a_look_up_or_a_read_missed_are_told(tier: StoreTier, store: FakeStore):
    store.data = [encode_chunk(chunk(0))]
    await load(tier)
    assert tier.take_absent() == [HASHES[1], HASHES[2]]
    store.num_stored = 2  # the second was evicted since the look-up
    await load(tier)
    assert tier.take_absent() == [HASHES[2], HASHES[1]]
    store.data = [encode_chunk(chunk(1))]
    store.num_stored = 3
    await load(tier)
    assert tier.take_absent() == [HASHES[0]]
