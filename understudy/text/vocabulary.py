"""What is known of a vocabulary without its tokenizer, which takes thirty times the memory."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The texts of all token ids, immutable and safe between threads."""

    eos_ids: tuple[int, ...]
    """Tokens that end an output."""
    digest: bytes
    """SHA-256 over the text of every id: equal where token ids mean the same."""
    _source: bytes
    _texts: bytes
    _ends: NDArray[np.int64]

    @classmethod
    def of(
        cls, source: str, eos_ids: Sequence[int], names: Sequence[str], texts: Sequence[bytes]
    ) -> "Vocabulary":
        """Build from what every id is called and the bytes that it stands for."""
        digest = hashlib.sha256("\0".join(names).encode()).digest()
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        return cls(tuple(eos_ids), digest, source.encode(), b"".join(texts), ends)

    @property
    def source(self) -> str:
        """The `tokenizer.json` it comes from, as grammar engines want it; made anew each time."""
        return self._source.decode()

    @property
    def size(self) -> int:
        """How many token ids exist; valid ids are 0 to size - 1."""
        return len(self._ends)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token; control tokens have none."""
        start = int(self._ends[token_id - 1]) if token_id else 0
        return self._texts[start : int(self._ends[token_id])]

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of a finished answer; invalid UTF-8 becomes the replacement character."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")
