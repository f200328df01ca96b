"""Which prefixes are on their way: hashes that a running or loading sequence is about to seal.

A sequence whose next block is promised by another waits for it instead of computing it a second
time. A promise ends when it is kept (the block is sealed) or withdrawn (its maker was preempted,
ended, or got less from the kvstore than it had asked for).
"""

from collections.abc import Iterable

from services.attention.sequence import Sequence, SequenceKey


class Promises:
    """The first maker of a promise stays the one waited for."""

    def __init__(self) -> None:
        self._maker_of: dict[bytes, Sequence] = {}
        self._made_by: dict[SequenceKey, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._maker_of)

    def make(self, sequence: Sequence, hashes: Iterable[bytes]) -> None:
        """Promise that `sequence` seals these hashes."""
        made = {chain_hash for chain_hash in hashes if chain_hash not in self._maker_of}
        if made:
            self._maker_of.update(dict.fromkeys(made, sequence))
            self._made_by.setdefault(sequence.key, set()).update(made)

    def maker(self, chain_hash: bytes) -> Sequence | None:
        """Return who is about to seal a hash."""
        return self._maker_of.get(chain_hash)

    def keep(self, chain_hash: bytes) -> None:
        """Note that the block exists, whoever sealed it."""
        maker = self._maker_of.pop(chain_hash, None)
        if maker is not None:
            made = self._made_by[maker.key]
            made.discard(chain_hash)
            if not made:
                del self._made_by[maker.key]

    def withdraw(self, sequence: Sequence) -> None:
        """Forget all that a sequence has promised."""
        for chain_hash in self._made_by.pop(sequence.key, ()):
            del self._maker_of[chain_hash]
