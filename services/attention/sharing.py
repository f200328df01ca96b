"""Names and moves the KV that sequences share beyond this worker's blocks.

The engine thread's side of the KV tier: which blocks are worth asking for, putting the ones that
came into the prefix cache, and handing full blocks over to be written. What it cannot get is
recomputed, so nothing here ever fails a request.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.attention import sequence as sequences
from services.attention.blocks import BlockManager
from services.attention.preemption import Preemption
from services.attention.touches import TouchFilter
from understudy.chunks import MAX_CHAIN_HASHES, Chunk, chain_root, next_hash
from understudy.errors import FailedPrecondition


class BlockContents(Protocol):
    """The tensors behind the block numbers."""

    @property
    def block_bytes(self) -> int:
        """Size of one block."""
        ...

    def export_block(self, block: int) -> bytes:
        """Return the content of a block."""
        ...

    def import_block(self, block: int, content: bytes | bytearray | memoryview) -> None:
        """Overwrite the content of a block; FailedPrecondition for a wrong length."""
        ...


@dataclass(frozen=True, slots=True)
class Chain:
    """Names a run of chunks of one sequence, and the trace that reading it belongs to."""

    tenant: str
    config_digest: bytes
    hashes: tuple[bytes, ...]
    traceparent: str


Payloads = list[memoryview]
OnLoaded = Callable[[Payloads], None]


class KvTier(Protocol):
    """The I/O side of the tier; every call returns at once and never raises."""

    def is_worth_loading(self, num_tokens: int, size_bytes: int) -> bool:
        """Return whether fetching this many tokens beats recomputing them."""
        ...

    def is_worth_swapping(self, num_tokens: int, size_bytes: int) -> bool:
        """Return whether writing this now and fetching it later beats recomputing it."""
        ...

    def load(self, chain: Chain, block_tokens: int, block_bytes: int, on_loaded: OnLoaded) -> None:
        """Fetch a run; `on_loaded` gets the payloads from its head, possibly none, exactly once."""
        ...

    def store(self, tenant: str, traceparent: str, chunks: Sequence[Chunk]) -> None:
        """Write chunks in the order given, when there is room."""
        ...

    def room_bytes(self) -> int:
        """Return how much may be handed over to be written now."""
        ...

    def take_absent(self) -> list[bytes]:
        """Return which chunks turned out not to be stored since the last call.

        The store said so, or writing them failed.
        """
        ...

    def note_prefill(self, num_tokens: int, duration_s: float) -> None:
        """Learn how fast prefill is."""
        ...


class ChainKeys:
    """Chain hashes of sequences: tenant root and config digest first, adapter included."""

    def __init__(self, digests: Mapping[str, bytes], block_size: int) -> None:
        """`digests` maps each adapter name, and "" for none, to its config digest."""
        self._digests = digests
        self._block_size = block_size

    def digest(self, sequence: sequences.Sequence) -> bytes:
        """Return the config digest under which the sequence's KV is valid."""
        return self._digests[sequence.submission.adapter]

    def parent(self, sequence: sequences.Sequence, index: int) -> bytes:
        """Return the hash before block `index`."""
        if index == 0:
            return chain_root(sequence.submission.kv_root, self.digest(sequence))
        return sequence.hashes[index - 1]

    def next_hash(self, sequence: sequences.Sequence, index: int) -> bytes:
        """Return the chain hash of full block `index`; the hashes before it are known."""
        start = index * self._block_size
        tokens = sequence.tokens[start : start + self._block_size]
        return next_hash(self.parent(sequence, index), tokens)


class Sharing:
    """Moves blocks between the prefix cache and the tier; the engine thread is its only caller."""

    def __init__(
        self,
        *,
        blocks: BlockManager,
        contents: BlockContents,
        keys: ChainKeys,
        tier: KvTier,
        min_tokens: int,
        write_touches: int,
    ) -> None:
        self._blocks = blocks
        self._contents = contents
        self._keys = keys
        self._tier = tier
        self._min_tokens = min_tokens
        self._touches = TouchFilter(write_touches)

    def begin_loading(
        self,
        sequence: sequences.Sequence,
        hashes: Sequence[bytes],
        traceparent: str,
        on_loaded: OnLoaded,
    ) -> bool:
        """Ask the tier for what local blocks lack; return False when that is not worth it."""
        num_local = len(self._blocks.match(hashes))
        sequence.num_local_blocks = num_local
        missing = tuple(hashes[num_local : num_local + MAX_CHAIN_HASHES])
        num_tokens = len(missing) * self._blocks.block_size
        size_bytes = len(missing) * self._contents.block_bytes
        if num_tokens < max(1, self._min_tokens):
            return False
        if not self._tier.is_worth_loading(num_tokens, size_bytes):
            return False
        chain = Chain(
            tenant=sequence.submission.tenant,
            config_digest=self._keys.digest(sequence),
            hashes=missing,
            traceparent=traceparent,
        )
        self._tier.load(chain, self._blocks.block_size, self._contents.block_bytes, on_loaded)
        return True

    def take_in(self, sequence: sequences.Sequence, payloads: Payloads) -> None:
        """Put fetched blocks into the prefix cache, where admission will find them."""
        held: list[int] = []
        first = sequence.num_local_blocks
        for chain_hash, payload in zip(sequence.hashes[first:], payloads, strict=False):
            self._touches.mark_stored(chain_hash)
            if not self._blocks.is_sealed(chain_hash):
                granted = self._blocks.allocate(1)
                if granted is None:
                    break
                held.extend(granted)
                try:
                    self._contents.import_block(granted[0], payload)
                except FailedPrecondition:
                    break
                self._blocks.seal(granted[0], chain_hash)
            sequence.num_loaded_blocks += 1
        self._blocks.release(held)

    def write_back(self, sequence: sequences.Sequence, start: int, traceparent: str) -> None:
        """Hand the sealed blocks from `start` on over to be written, as many as there is room for.

        The first ones that are due go, tail first; the others are due at their next touch.
        """
        self._note_absent()
        due = [
            index
            for index in range(start, sequence.num_sealed)
            if self._touches.touch(sequence.hashes[index])
        ]
        room = self._tier.room_bytes() // self._contents.block_bytes
        self._store(sequence, due[:room], sequence.blocks, traceparent)

    def swap_out(self, preemption: Preemption, traceparent: str) -> int:
        """Write the KV of a preempted sequence when that beats recomputing it.

        Returns how many blocks from its head it may be fetched from the store later; must be
        called before the next forward overwrites them.
        """
        sequence, num_sealed = preemption.sequence, preemption.num_sealed
        num_tokens = num_sealed * self._blocks.block_size
        if num_tokens < max(1, self._min_tokens):
            return 0
        if not self._tier.is_worth_swapping(num_tokens, num_sealed * self._contents.block_bytes):
            return 0
        self._note_absent()
        wanted = [i for i in range(num_sealed) if not self._touches.is_stored(sequence.hashes[i])]
        self._store(sequence, wanted, preemption.blocks, traceparent)
        return num_sealed

    def note_prefill(self, num_tokens: int, duration_s: float) -> None:
        """Tell the tier how long a step of prompt chunks took."""
        self._tier.note_prefill(num_tokens, duration_s)

    def _note_absent(self) -> None:
        for chain_hash in self._tier.take_absent():
            self._touches.mark_absent(chain_hash)

    def _store(
        self,
        sequence: sequences.Sequence,
        indices: Sequence[int],
        blocks: Sequence[int],
        traceparent: str,
    ) -> None:
        """Hand over what counts as stored from now on, until the tier takes that back."""
        if not indices:
            return
        chunks = [self._chunk(sequence, index, blocks) for index in reversed(indices)]
        for chunk in chunks:
            self._touches.mark_stored(chunk.hash)
        self._tier.store(sequence.submission.tenant, traceparent, chunks)

    def _chunk(self, sequence: sequences.Sequence, index: int, blocks: Sequence[int]) -> Chunk:
        return Chunk(
            config_digest=self._keys.digest(sequence),
            hash=sequence.hashes[index],
            parent=self._keys.parent(sequence, index),
            num_tokens=self._blocks.block_size,
            payload=self._contents.export_block(blocks[index]),
        )
