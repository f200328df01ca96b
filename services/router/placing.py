"""Which worker of a pool takes a prompt: the one that has least to do, or that knows its beginning.

Load is counted in prompt tokens that wait to be read, not in sequences: one prompt of 4,000 tokens
keeps a worker as long as thirty short ones. A prefix that a worker has read already is worth a
short queue there, and as many tokens as need not be read again; never a long queue.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

PREFIX_STRIDE: Final = 64
"""Tokens between the points at which prefixes are remembered."""
MAX_PREFIXES: Final = 4096
SEQUENCE_TOKENS: Final = 128
"""What a sequence weighs beside its unread prompt, in prompt tokens: it has an answer to write."""
MAX_LEAD_TOKENS: Final = 4 * SEQUENCE_TOKENS
"""How far a worker may lead the least loaded one, beside what it need not read again, and still be
picked for a prefix."""


class PrefixMemory:
    """Which worker lately saw which prompt prefixes; bounded, oldest forgotten first."""

    def __init__(self, max_prefixes: int = MAX_PREFIXES) -> None:
        self._max_prefixes = max_prefixes
        self._worker_of: OrderedDict[bytes, str] = OrderedDict()

    def remember(self, prefixes: Sequence[bytes], address: str) -> None:
        """Note that a worker now holds these prefixes."""
        for prefix in prefixes:
            self._worker_of[prefix] = address
            self._worker_of.move_to_end(prefix)
        while len(self._worker_of) > self._max_prefixes:
            self._worker_of.popitem(last=False)

    def find(self, prefixes: Sequence[bytes]) -> tuple[str, int] | None:
        """Return who holds the longest of these prefixes (shortest first), and its tokens."""
        for number in range(len(prefixes), 0, -1):
            worker = self._worker_of.get(prefixes[number - 1])
            if worker is not None:
                return worker, number * PREFIX_STRIDE
        return None


def prefix_hashes(root: bytes, adapter: str, tokens: Sequence[int]) -> list[bytes]:
    """Return hashes of the prefixes at every stride, shortest first; tenants never share one."""
    running = hashlib.sha256(root + adapter.encode() + b"\0")
    hashes = []
    for end in range(PREFIX_STRIDE, len(tokens) + 1, PREFIX_STRIDE):
        chunk = tokens[end - PREFIX_STRIDE : end]
        running.update(b"".join(token.to_bytes(4, "little") for token in chunk))
        hashes.append(running.digest())
    return hashes


def load_tokens(num_sequences: int, unread_tokens: int) -> int:
    """Return the load of a worker with this many sequences and prompt tokens yet to be read."""
    return num_sequences * SEQUENCE_TOKENS + unread_tokens


def pick_address(loads: Mapping[str, int], known: tuple[str, int] | None) -> str:
    """Pick from workers with their loads; `known` has the prompt's first tokens: who, how many."""
    least = min(loads.values())
    if known is not None:
        preferred, num_shared = known
        if preferred in loads and loads[preferred] - least <= MAX_LEAD_TOKENS + num_shared:
            return preferred
    return min(loads, key=lambda address: (loads[address], address))
