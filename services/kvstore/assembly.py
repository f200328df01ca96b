"""Puts a kvstore together from its settings, and takes it apart again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from services.kvstore.clients import MIB, RedisChunks, open_redis
from services.kvstore.memory import HostMemory
from services.kvstore.metrics import KvStoreMetrics
from services.kvstore.settings import KvStoreSettings
from services.kvstore.store import ChunkStore


@dataclass(frozen=True, slots=True)
class OpenedStore:
    """A store with the tier that its drain waits for."""

    store: ChunkStore
    redis: RedisChunks | None

    async def drain(self, grace_s: float) -> None:
        """Write what is queued for Redis, for at most `grace_s`."""
        if self.redis is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self.redis.flush()


@asynccontextmanager
async def open_store(
    settings: KvStoreSettings, registry: CollectorRegistry
) -> AsyncIterator[OpenedStore]:
    """Open both tiers and start writing to Redis; closes them on exit."""
    metrics = KvStoreMetrics.on(registry)
    redis = open_redis(settings, metrics)
    store = ChunkStore(HostMemory(settings.memory_mib * MIB), redis, metrics)
    if redis is None:
        yield OpenedStore(store, None)
        return
    writer = asyncio.create_task(redis.run())
    try:
        yield OpenedStore(store, redis)
    finally:
        writer.cancel()
        with suppress(asyncio.CancelledError):
            await writer
        await redis.aclose()
