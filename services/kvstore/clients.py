"""Redis (or Valkey) as the tier behind host memory.

Reads: one pipelined EXISTS, single GETs side by side (one large MGET is slower a byte). Writes: in
the background, only where absent, in the order given, so that a chain handed over tail first loses
its tail first. Every answer has a timeout, nothing is retried, and after a few failures in a row
Redis is left alone for a while: losing it costs hits and nothing else.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from typing import Final, TypeVar, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.kvstore.admission import Admission
from services.kvstore.breaker import CircuitBreaker
from services.kvstore.metrics import KvStoreMetrics
from services.kvstore.settings import KvStoreSettings

log = logging.getLogger(__name__)

MIB: Final = 1 << 20
MAX_EXISTS: Final = 512
"""Keys in one pipeline; a longer chain takes several."""
ResultT = TypeVar("ResultT")


class RedisChunks:
    """`RemoteChunks` in Redis. Belongs to one event loop."""

    def __init__(self, redis: Redis, settings: KvStoreSettings, metrics: KvStoreMetrics) -> None:
        self._redis = redis
        self._timeout_s = settings.redis_timeout_s
        self._max_waiting_bytes = settings.redis_inflight_mib * MIB
        self._metrics = metrics
        self._breaker = CircuitBreaker(
            settings.breaker_failures, settings.breaker_rest_s, time.monotonic
        )
        self._admission = Admission(settings.redis_write_touches)
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._waiting_bytes = 0
        self._slots = asyncio.Semaphore(settings.redis_connections)
        self._has_work = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    async def have(self, keys: Sequence[str]) -> list[bool]:
        """Return for each key whether it is stored; unknown counts as not."""
        found: list[bool] = []
        for start in range(0, len(keys), MAX_EXISTS):
            pipeline = self._redis.pipeline(transaction=False)
            for key in keys[start : start + MAX_EXISTS]:
                pipeline.exists(key)
            answers = await self._ask("exists", cast("Awaitable[list[int]]", pipeline.execute()))
            if answers is None:
                break
            found.extend(bool(answer) for answer in answers)
            if not all(answers):
                break
        return found + [False] * (len(keys) - len(found))

    async def get(self, key: str) -> bytes | None:
        """Return a value, None for a miss or a failure."""
        return await self._ask("get", cast("Awaitable[bytes | None]", self._redis.get(key)))

    async def discard(self, key: str) -> None:
        """Remove a damaged value, so that a good one can take its place."""
        await self._ask("unlink", self._redis.unlink(key))

    def put(self, key: str, data: bytes) -> None:
        """Queue a value for writing; dropped when too many bytes wait or Redis is left alone."""
        if not self._admission.admits(key):
            return
        if self._breaker.is_open or self._waiting_bytes + len(data) > self._max_waiting_bytes:
            self._metrics.dropped_writes.inc()
            return
        self._waiting.append((key, data))
        self._note_waiting(len(data))

    async def run(self) -> None:
        """Write what is queued, for ever; a task beside the server."""
        while True:
            await self._has_work.wait()
            while self._waiting:
                key, data = self._waiting.popleft()
                written = await self._ask("set", self._set(key, data))
                if written is None:
                    self._metrics.dropped_writes.inc()
                self._note_waiting(-len(data))

    async def flush(self) -> None:
        """Wait until nothing is queued."""
        await self._is_idle.wait()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _set(self, key: str, data: bytes) -> bool:
        return await self._redis.set(key, data, nx=True) is not None

    async def _ask(self, operation: str, answer: Awaitable[ResultT]) -> ResultT | None:
        if not self._breaker.allows():
            _forget(answer)
            self._metrics.redis_operations.labels(operation=operation, outcome="skipped").inc()
            return None
        try:
            async with self._slots:
                started_s = time.monotonic()
                async with asyncio.timeout(self._timeout_s):
                    result = await answer
        except (RedisError, OSError, TimeoutError) as error:
            self._note_failure(operation, error)
            return None
        self._breaker.note_success()
        self._metrics.redis_operations.labels(operation=operation, outcome="ok").inc()
        self._metrics.redis_seconds.labels(operation=operation).observe(
            time.monotonic() - started_s
        )
        return result

    def _note_failure(self, operation: str, error: Exception) -> None:
        was_open = self._breaker.is_open
        self._breaker.note_failure()
        self._metrics.redis_operations.labels(operation=operation, outcome="failed").inc()
        if self._breaker.is_open and not was_open:
            log.warning(
                "The KV Redis fails (%s on %s); chunks are missed until it answers again.",
                type(error).__name__,
                operation,
            )

    def _note_waiting(self, size_bytes: int) -> None:
        self._waiting_bytes += size_bytes
        self._metrics.waiting_bytes.set(self._waiting_bytes)
        if self._waiting_bytes:
            self._has_work.set()
            self._is_idle.clear()
        else:
            self._has_work.clear()
            self._is_idle.set()


def open_redis(settings: KvStoreSettings, metrics: KvStoreMetrics) -> RedisChunks | None:
    """Return the Redis tier, None where the settings name no Redis; connects on first use."""
    if not settings.redis_url:
        return None
    authority = {"ssl_ca_certs": str(settings.redis_ca)} if settings.redis_ca else {}
    pool = BlockingConnectionPool.from_url(
        settings.redis_url,
        max_connections=settings.redis_connections,
        socket_timeout=settings.redis_timeout_s,
        socket_connect_timeout=settings.redis_timeout_s,
        retry=Retry(NoBackoff(), 0),
        **authority,
    )
    return RedisChunks(Redis.from_pool(pool), settings, metrics)


def _forget(answer: object) -> None:
    """Close a coroutine that will not be awaited."""
    if asyncio.iscoroutine(answer):
        answer.close()
