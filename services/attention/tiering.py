"""The I/O side of the KV tier: reads and writes chunks in the kvstore, on the event loop.

The engine thread calls it and is never held up. A miss, a timeout, a chunk that does not belong
or a dead kvstore all look the same from there: fewer payloads came, the rest is recomputed. What is
in flight to be written is bounded in bytes.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Final, Protocol

from services.attention.metrics import TierMetrics
from services.attention.rates import (
    Breaker,
    Rate,
    is_fetch_faster,
    is_swap_faster,
    read_limit_s,
)
from services.attention.sharing import Chain, OnLoaded, Payloads
from understudy.chunks import Chunk, Mismatch, decode_chunk
from understudy.errors import UnderstudyError

MAX_WRITING_BYTES: Final = 64 << 20
MAX_ABSENT: Final = 65_536
"""Chunks remembered as absent until the engine asks; beyond that the oldest are forgotten."""
MAX_FAILURES: Final = 3
REST_S: Final = 5.0
WRITE_TIMEOUT_S: Final = 10.0
MAX_RATE_AGE_S: Final = 30.0
"""How long the store counts as slow because it was; then a transfer measures it anew."""
TRIAL_TIMEOUTS: Final = 8
"""Look-up timeouts that a read may take in all while no rate at all is known."""


class ChunkStore(Protocol):
    """The kvstore as the tier sees it; failures are UnderstudyErrors."""

    async def lookup(self, chain: Chain, timeout_s: float) -> int:
        """Return how many chunks from the head of the chain are stored."""
        ...

    def get(self, chain: Chain, timeout_s: float) -> AsyncGenerator[bytes, None]:
        """Yield encoded chunks in order, up to the first miss."""
        ...

    async def put(self, entries: Sequence[tuple[Chain, Chunk]], timeout_s: float) -> int:
        """Store chunks, each under its chain of one, in order; return how many were taken."""
        ...


class StoreTier:
    """`KvTier` over a `ChunkStore`; entry points are safe to call from the engine thread."""

    def __init__(
        self,
        store: ChunkStore,
        loop: asyncio.AbstractEventLoop,
        metrics: TierMetrics,
        *,
        timeout_s: float,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`timeout_s` bounds a look-up, and each chunk's wait until the store's rate is known."""
        self._store = store
        self._loop = loop
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._clock_s = clock_s
        self._breaker = Breaker(MAX_FAILURES, REST_S)
        self._prefill = Rate()
        self._fetch = Rate(MAX_RATE_AGE_S)
        self._writing = Rate(MAX_RATE_AGE_S)
        self._round_trip_s = 0.0
        self._writing_bytes = 0
        self._writing_lock = threading.Lock()
        self._absent: deque[bytes] = deque(maxlen=MAX_ABSENT)
        self._tasks: set[asyncio.Task[None]] = set()

    def is_worth_loading(self, num_tokens: int, size_bytes: int) -> bool:
        """Return whether the kvstore answers and measured rates favour a fetch."""
        now_s = self._clock_s()
        return self._breaker.allows(now_s) and is_fetch_faster(
            num_tokens,
            size_bytes,
            prefill_tokens_per_s=self._prefill.per_s(now_s),
            fetch_bytes_per_s=self._fetch.per_s(now_s),
            round_trip_s=self._round_trip_s,
        )

    def is_worth_swapping(self, num_tokens: int, size_bytes: int) -> bool:
        """Return whether there is room to write this and measured rates favour a round trip."""
        now_s = self._clock_s()
        return size_bytes <= self.room_bytes() and is_swap_faster(
            num_tokens,
            size_bytes,
            prefill_tokens_per_s=self._prefill.per_s(now_s),
            fetch_bytes_per_s=self._fetch.per_s(now_s),
            write_bytes_per_s=self._writing.per_s(now_s),
            round_trip_s=self._round_trip_s,
        )

    def load(self, chain: Chain, block_tokens: int, block_bytes: int, on_loaded: OnLoaded) -> None:
        """Fetch a run in the background; `on_loaded` is called on the event loop."""
        loading = self._load(chain, block_tokens, block_bytes, on_loaded)
        self._loop.call_soon_threadsafe(self._spawn, loading)

    def store(self, tenant: str, traceparent: str, chunks: Sequence[Chunk]) -> None:
        """Write chunks in the background, in the order given."""
        self._note_writing(sum(len(chunk.payload) for chunk in chunks))
        self._loop.call_soon_threadsafe(self._spawn, self._write(tenant, traceparent, chunks))

    def room_bytes(self) -> int:
        """Return how much more may be written beside the writes in flight."""
        if not self._breaker.allows(self._clock_s()):
            return 0
        return max(0, MAX_WRITING_BYTES - self._writing_bytes)

    def take_absent(self) -> list[bytes]:
        """Return which chunks turned out not to be stored since the last call."""
        return [self._absent.popleft() for _ in range(len(self._absent))]

    def note_prefill(self, num_tokens: int, duration_s: float) -> None:
        """Learn how fast prefill is."""
        self._prefill.note(num_tokens, duration_s, self._clock_s())

    async def aclose(self) -> None:
        """Give up what is still in flight."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(
        self, chain: Chain, block_tokens: int, block_bytes: int, on_loaded: OnLoaded
    ) -> None:
        payloads: Payloads = []
        try:
            await self._fetch_into(payloads, chain, block_tokens, block_bytes)
            self._breaker.note_success()
        except (UnderstudyError, TimeoutError) as error:
            self._metrics.failures.labels(operation="read").inc()
            if payloads and isinstance(error, TimeoutError):
                self._breaker.note_success()  # alive and slow, which its rate says from now on
            else:
                self._breaker.note_failure(self._clock_s())
        finally:
            self._metrics.chunks_read.inc(len(payloads))
            on_loaded(payloads)

    async def _fetch_into(
        self, payloads: Payloads, chain: Chain, block_tokens: int, block_bytes: int
    ) -> None:
        started_s = self._clock_s()
        num_stored = await self._store.lookup(chain, self._timeout_s)
        looked_up_s = self._clock_s()
        self._round_trip_s = looked_up_s - started_s
        self._absent.extend(chain.hashes[num_stored:])
        if num_stored == 0:
            return
        stored = replace(chain, hashes=chain.hashes[:num_stored])
        limit_s = self._read_limit_s(num_stored * block_tokens, num_stored * block_bytes)
        try:
            await self._read_into(payloads, stored, limit_s)
        finally:  # a read that was cut teaches as much as one that was not
            now_s = self._clock_s()
            self._fetch.note(len(payloads) * block_bytes, now_s - looked_up_s, now_s)

    async def _read_into(self, payloads: Payloads, stored: Chain, limit_s: float) -> None:
        """Append the payloads of a run that is stored. Raises TimeoutError when it takes longer."""
        loop = self._loop
        end_s = loop.time() + limit_s
        is_measured = self._fetch.per_s(self._clock_s()) is not None
        gap_s = limit_s if is_measured else self._timeout_s
        async with (
            asyncio.timeout_at(min(end_s, loop.time() + gap_s)) as limit,
            aclosing(self._store.get(stored, 2 * limit_s)) as encoded,
        ):
            async for data in encoded:
                limit.reschedule(min(end_s, loop.time() + gap_s))
                chunk = decode_chunk(data, stored.config_digest, stored.hashes[len(payloads)])
                if isinstance(chunk, Mismatch):
                    self._metrics.failures.labels(operation="decode").inc()
                    self._absent.append(stored.hashes[len(payloads)])
                    return
                payloads.append(memoryview(chunk.payload))
                if len(payloads) == len(stored.hashes):
                    return
        self._absent.extend(stored.hashes[len(payloads) :])

    def _read_limit_s(self, num_tokens: int, size_bytes: int) -> float:
        now_s = self._clock_s()
        limit_s = read_limit_s(
            num_tokens,
            size_bytes,
            prefill_tokens_per_s=self._prefill.per_s(now_s),
            fetch_bytes_per_s=self._fetch.per_s(now_s),
        )
        if limit_s is None:
            return TRIAL_TIMEOUTS * self._timeout_s
        return max(limit_s, self._timeout_s)

    async def _write(self, tenant: str, traceparent: str, chunks: Sequence[Chunk]) -> None:
        size_bytes = sum(len(chunk.payload) for chunk in chunks)
        started_s = self._clock_s()
        try:
            entries = [
                (Chain(tenant, chunk.config_digest, (chunk.hash,), traceparent), chunk)
                for chunk in chunks
            ]
            num_stored = await self._store.put(entries, WRITE_TIMEOUT_S)
            self._metrics.chunks_written.inc(num_stored)
            now_s = self._clock_s()
            self._writing.note(size_bytes, now_s - started_s, now_s)
            self._breaker.note_success()
        except (UnderstudyError, TimeoutError):
            self._metrics.failures.labels(operation="write").inc()
            self._absent.extend(chunk.hash for chunk in chunks)
            self._breaker.note_failure(self._clock_s())
        finally:
            self._note_writing(-size_bytes)

    def _note_writing(self, size_bytes: int) -> None:
        with self._writing_lock:
            self._writing_bytes += size_bytes
