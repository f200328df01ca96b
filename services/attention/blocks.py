"""Paged KV bookkeeping: which block belongs to whom, and which blocks hold a known prefix.

A block is a fixed run of KV tokens. Blocks are counted references: sequences that share a prefix
share its blocks. A block that is full and whose tokens are known gets *sealed* with its chain hash,
which names the tokens of the block and of everything before it; sealed blocks are never written
again. When the last reference goes, a sealed block stays findable until its memory is needed:
blank blocks are handed out first, then sealed ones, least recently released first, and the tail of
a prefix before its head.

Touches no tensor; the engine thread is its only caller.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockManager:
    """Hands out block numbers 0 to `num_blocks` - 1 and remembers sealed prefixes."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._references = [0] * num_blocks
        self._hash_of_block: list[bytes | None] = [None] * num_blocks
        self._block_of_hash: dict[bytes, int] = {}
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._sealed_free: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Blocks that no sequence holds, sealed ones included."""
        return len(self._blank) + len(self._sealed_free)

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """Return the blocks of the longest sealed run from a chain's head; acquires nothing."""
        found = []
        for chain_hash in hashes:
            block = self._block_of_hash.get(chain_hash)
            if block is None:
                break
            found.append(block)
        return found

    def is_sealed(self, chain_hash: bytes) -> bool:
        """Return whether some block holds the prefix of this hash."""
        return chain_hash in self._block_of_hash

    def num_idle(self, blocks: Iterable[int]) -> int:
        """Return how many of these blocks nobody holds, that is, count as free until acquired."""
        return sum(self._references[block] == 0 for block in blocks)

    def num_references(self, block: int) -> int:
        """Return how many hold this block."""
        return self._references[block]

    def acquire(self, blocks: Sequence[int]) -> None:
        """Add one reference to each of these matched blocks."""
        for block in blocks:
            if self._references[block] == 0:
                del self._sealed_free[block]
            self._references[block] += 1

    def allocate(self, count: int) -> list[int] | None:
        """Return `count` blank blocks with one reference each, or None when too few are free."""
        if count > self.num_free:
            return None
        blocks = [self._take_one() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference from each block of a table, so that its tail is evicted first."""
        for block in reversed(blocks):
            assert self._references[block] > 0, f"Block {block} is released twice."
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._hash_of_block[block] is None:
                    self._blank.append(block)
                else:
                    self._sealed_free[block] = None

    def seal(self, block: int, chain_hash: bytes) -> None:
        """Make a full, referenced block findable; the first block of a hash stays the one found."""
        assert self._references[block] > 0, f"Block {block} is sealed while nobody holds it."
        if chain_hash not in self._block_of_hash and self._hash_of_block[block] is None:
            self._block_of_hash[chain_hash] = block
            self._hash_of_block[block] = chain_hash

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Assert that these block tables, all there are, explain every reference and free block."""
        held = [0] * self.num_blocks
        for table in tables:
            assert len(set(table)) == len(table), f"A table holds a block twice: {table}."
            for block in table:
                held[block] += 1
        assert held == self._references, "References differ from the tables."
        free = [*self._blank, *self._sealed_free]
        idle = [block for block in range(self.num_blocks) if held[block] == 0]
        assert sorted(free) == idle, "The free blocks are not the unreferenced ones."
        assert all(self._hash_of_block[block] is None for block in self._blank)
        assert all(self._hash_of_block[block] is not None for block in self._sealed_free)
        sealed = {h: block for block, h in enumerate(self._hash_of_block) if h is not None}
        assert sealed == self._block_of_hash, "Sealed blocks and their index differ."

    def _take_one(self) -> int:
        if self._blank:
            return self._blank.pop()
        block, _ = self._sealed_free.popitem(last=False)
        chain_hash = self._hash_of_block[block]
        assert chain_hash is not None
        del self._block_of_hash[chain_hash]
        self._hash_of_block[block] = None
        return block
