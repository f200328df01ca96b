"""The two tiers as one store: host memory first, Redis behind it, every failure a miss."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple, Protocol

from services.kvstore.chains import Chain
from services.kvstore.memory import HostMemory
from services.kvstore.metrics import KvStoreMetrics
from understudy.chunks import Chunk, Mismatch, decode_chunk

READ_AHEAD: Final = 8
"""Chunks asked of Redis at once; bounds the bytes held for a reader that is slow."""


class Found(NamedTuple):
    """The longest stored run of a chain."""

    num_stored: int
    num_in_memory: int


class RemoteChunks(Protocol):
    """The tier behind host memory. Raises nothing: what it cannot tell is not there."""

    async def have(self, keys: Sequence[str]) -> list[bool]:
        """Return for each key whether it is stored."""
        ...

    async def get(self, key: str) -> bytes | None:
        """Return a value, None for a miss."""
        ...

    async def discard(self, key: str) -> None:
        """Remove a value that turned out to be damaged."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Store a value in the background, unless it is there or too much waits already."""
        ...


class ChunkStore:
    """Chunks by chain. Belongs to one event loop."""

    def __init__(
        self, memory: HostMemory, remote: RemoteChunks | None, metrics: KvStoreMetrics
    ) -> None:
        """`remote` is None where host memory is all there is."""
        self._memory = memory
        self._remote = remote
        self._metrics = metrics

    async def lookup(self, chain: Chain) -> Found:
        """Return the longest run from the head that is stored in either tier."""
        in_memory = [key in self._memory for key in chain.keys]
        absent = [key for key, is_here in zip(chain.keys, in_memory, strict=True) if not is_here]
        remote: dict[str, bool] = {}
        if absent and self._remote is not None:
            remote = dict(zip(absent, await self._remote.have(absent), strict=True))
        num_stored = 0
        for key, is_here in zip(chain.keys, in_memory, strict=True):
            if not is_here and not remote.get(key, False):
                break
            num_stored += 1
        return Found(num_stored, sum(in_memory[:num_stored]))

    async def read(self, chain: Chain) -> AsyncIterator[tuple[bytes, bytes]]:
        """Yield (hash, encoded chunk) in order, up to the first miss."""
        for start in range(0, len(chain.keys), READ_AHEAD):
            stop = min(start + READ_AHEAD, len(chain.keys))
            chunks = await asyncio.gather(
                *(self._read_one(chain, index) for index in range(start, stop))
            )
            for hash_, data in zip(chain.hashes[start:stop], chunks, strict=True):
                if data is None:
                    return
                yield hash_, data

    def put(self, chain: Chain, data: bytes) -> bool:
        """Keep a chunk under its chain of one; False when it is not what the chain says.

        Redis is written in the background, in the order of the calls.
        """
        mismatch = self._check(chain, 0, data)
        if mismatch is not None:
            self._metrics.refused.labels(source="put", mismatch=mismatch).inc()
            return False
        self._keep(chain.keys[0], data)
        if self._remote is not None:
            self._remote.put(chain.keys[0], data)
        return True

    async def _read_one(self, chain: Chain, index: int) -> bytes | None:
        key = chain.keys[index]
        data = self._memory.get(key)
        if data is not None:
            self._metrics.chunks.labels(outcome="memory").inc()
            return data
        data = None if self._remote is None else await self._read_remote(chain, index)
        self._metrics.chunks.labels(outcome="miss" if data is None else "redis").inc()
        return data

    async def _read_remote(self, chain: Chain, index: int) -> bytes | None:
        assert self._remote is not None
        key = chain.keys[index]
        data = await self._remote.get(key)
        if data is None:
            return None
        mismatch = self._check(chain, index, data)
        if mismatch is not None:
            self._metrics.refused.labels(source="redis", mismatch=mismatch).inc()
            await self._remote.discard(key)
            return None
        self._keep(key, data)
        return data

    def _keep(self, key: str, data: bytes) -> None:
        self._metrics.evicted.inc(self._memory.put(key, data))
        self._metrics.memory_bytes.set(self._memory.size_bytes)

    @staticmethod
    def _check(chain: Chain, index: int, data: bytes) -> Mismatch | None:
        chunk = decode_chunk(data, chain.config_digest, chain.hashes[index])
        return None if isinstance(chunk, Chunk) else chunk
