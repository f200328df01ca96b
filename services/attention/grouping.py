"""Which prefixes waiting sequences need, in what order that serves them best, and holding them.

An offline batch is ordered by its prefix tree, depth first, largest sharing first (BatchLLM, arXiv
2412.03594): sequences with a common prefix follow each other, so that the prefix is computed once
and its blocks are needed for as short a time as can be. Meanwhile they are held, so that nothing
evicts them between two sequences that need them; whoever runs takes precedence over what is held.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from services.attention.blocks import BlockManager

UNSHARED: Final = (0, b"")
GroupKey = tuple[tuple[int, bytes], ...]


class PrefixDemand:
    """How many waiting sequences need each prefix."""

    def __init__(self) -> None:
        self._counts: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._counts)

    def count(self, chain_hash: bytes) -> int:
        """Return how many waiting sequences begin with the prefix of this hash."""
        return self._counts[chain_hash]

    def add(self, hashes: Iterable[bytes]) -> None:
        """Count a waiting sequence."""
        self._counts.update(hashes)

    def remove(self, hashes: Iterable[bytes]) -> list[bytes]:
        """Count a waiting sequence less; return the prefixes that none needs any more."""
        unneeded = []
        for chain_hash in hashes:
            self._counts[chain_hash] -= 1
            if self._counts[chain_hash] == 0:
                del self._counts[chain_hash]
                unneeded.append(chain_hash)
        return unneeded


def group_key(hashes: Sequence[bytes], count: Callable[[bytes], int]) -> GroupKey:
    """Return a key that sorts chains depth first by their prefix tree, largest sharing first.

    Each run of blocks that the same sequences have in common becomes one entry: the blocks that
    computing it once saves, negated, and its first hash. Unshared tails go last.
    """
    counts = [*map(count, hashes), 0]
    runs: list[tuple[int, bytes]] = []
    start = 0
    for index, num_sharing in enumerate(counts):
        if num_sharing != counts[start]:
            runs.append(((1 - counts[start]) * (index - start), hashes[start]))
            start = index
        if num_sharing <= 1:
            break
    return (*runs, UNSHARED)


class HeldBlocks:
    """Sealed blocks that are kept for waiting sequences, one reference each."""

    def __init__(self, blocks: BlockManager) -> None:
        self._blocks = blocks
        self._held: dict[bytes, int] = {}

    @property
    def table(self) -> list[int]:
        """The held blocks."""
        return list(self._held.values())

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, chain_hash: bytes) -> None:
        """Keep the sealed block of a hash; once is enough."""
        if chain_hash not in self._held:
            (block,) = self._blocks.match([chain_hash])
            self._blocks.acquire([block])
            self._held[chain_hash] = block

    def release(self, hashes: Iterable[bytes]) -> None:
        """Let go of what nobody waits for any more."""
        found = [self._held.pop(h) for h in hashes if h in self._held]
        self._blocks.release(found)

    def give_back(self, num_blocks: int, kept: Collection[int] = ()) -> bool:
        """Let go of blocks, the latest first, until so many are free; return whether any went.

        Blocks in `kept`, and those that a sequence holds too, would not become free and stay.
        """
        has_released = False
        for chain_hash, block in reversed(list(self._held.items())):
            if num_blocks <= 0:
                break
            if block not in kept and self._blocks.num_references(block) == 1:
                self.release([chain_hash])
                num_blocks -= 1
                has_released = True
        return has_released
