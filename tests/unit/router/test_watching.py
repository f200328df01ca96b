"""Pools follow discovery: workers come, are watched, and go with their connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from services.router.pools import Pool, SequenceStream, Submission, WorkerInfo
from services.router.watching import PoolWatch
from understudy.discovery import Endpoint


class FakeDiscovery:
    def __init__(self) -> None:
        self.news: asyncio.Queue[frozenset[Endpoint]] = asyncio.Queue()
        self.second_seen = asyncio.Event()
        self.is_closed = False

    async def watch(self) -> AsyncIterator[frozenset[Endpoint]]:
        yield await self.news.get()
        yield await self.news.get()
        self.second_seen.set()

    async def aclose(self) -> None:
        self.is_closed = True


class FakeWorker:
    info: WorkerInfo | None = None
    num_active = 0
    unread_tokens = 0

    def __init__(self, address: str) -> None:
        self.address = address
        self.is_watched = asyncio.Event()
        self.is_closed = asyncio.Event()
        self.is_idle = asyncio.Event()
        self.is_idle.set()

    async def wait_idle(self) -> None:
        await self.is_idle.wait()

    def submit(self, submission: Submission) -> SequenceStream:
        raise NotImplementedError

    async def watch(self) -> None:
        self.is_watched.set()
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.is_closed.set()


async def test_workers_come_and_go_with_the_discovery() -> None:
    made: dict[str, FakeWorker] = {}

    def connect(address: str) -> FakeWorker:
        made[address] = FakeWorker(address)
        return made[address]

    pool, discovery = Pool("llm"), FakeDiscovery()
    running = asyncio.create_task(PoolWatch(pool, discovery, connect).run())
    discovery.news.put_nowait(frozenset({Endpoint("a:1"), Endpoint("b:1")}))
    discovery.news.put_nowait(frozenset({Endpoint("b:1"), Endpoint("c:1")}))
    async with asyncio.timeout(10):
        await discovery.second_seen.wait()
        await made["a:1"].is_closed.wait()
        await made["c:1"].is_watched.wait()
    assert sorted(pool.workers) == ["b:1", "c:1"]
    assert not made["b:1"].is_closed.is_set()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert pool.workers == {}
    assert all(worker.is_closed.is_set() for worker in made.values())
    assert discovery.is_closed


async def test_a_worker_that_leaves_keeps_its_connection_until_its_sequences_ended() -> None:
    made: dict[str, FakeWorker] = {}

    def connect(address: str) -> FakeWorker:
        made[address] = FakeWorker(address)
        made[address].is_idle.clear()
        return made[address]

    pool, discovery = Pool("llm"), FakeDiscovery()
    running = asyncio.create_task(PoolWatch(pool, discovery, connect).run())
    discovery.news.put_nowait(frozenset({Endpoint("a:1"), Endpoint("b:1")}))
    discovery.news.put_nowait(frozenset({Endpoint("c:1")}))
    async with asyncio.timeout(10):
        await discovery.second_seen.wait()
        await made["c:1"].is_watched.wait()
        assert sorted(pool.workers) == ["c:1"], "neither is picked any more"
        assert not made["a:1"].is_closed.is_set()
        made["a:1"].is_idle.set()
        await made["a:1"].is_closed.wait()
    assert not made["b:1"].is_closed.is_set()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert made["b:1"].is_closed.is_set(), "at the end nothing stays open"
