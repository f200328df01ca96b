"""Pools of attention workers, and which worker takes a sequence.

The pick is prefix-aware while the pool is balanced and load-aware when it is not: a long shared
prefix is worth a short queue, never a long one. Pure data; connections live in `clients`.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from services.router.answers import FinishReason
from services.router.requests import Priority, Sampling
from understudy.grammar import GrammarSource

PREFIX_STRIDE: Final = 64
"""Tokens between the points at which prefixes are remembered."""
MAX_PREFIXES: Final = 4096
PROVIDER: Final = "understudy"
"""Who runs the models of native pools, in the GenAI conventions."""
MAX_IMBALANCE: Final = 4
"""Sequences by which a worker may lead the least loaded one and still be picked for its prefix."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker last said of itself."""

    model: str
    digest: bytes
    adapters: frozenset[str]
    max_context_tokens: int
    position_parameters: int
    num_running: int
    num_waiting: int


@dataclass(frozen=True, slots=True)
class Submission:
    """One sequence as a worker needs it; `tokens` is prompt, then `num_committed` outputs."""

    tokens: tuple[int, ...]
    num_committed: int
    sampling: Sampling
    max_tokens: int
    grammar: GrammarSource | None
    adapter: str
    time_left_s: float
    kv_root: bytes
    tenant: str
    traceparent: str
    priority: Priority


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens of a sequence; all fields have one length."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    margins: tuple[float, ...]
    mask_losses: tuple[float, ...]
    is_forced: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """A sequence ended well."""

    finish_reason: FinishReason
    cached_tokens: int
    computed_positions: int


class SequenceStream(Protocol):
    """A running sequence: iterate to its end, or cancel it."""

    def __aiter__(self) -> AsyncIterator[Tokens | Ended]:
        """Yield tokens, then `Ended`; raises the named error of a sequence that failed."""

    def cancel(self) -> None:
        """End the sequence at the worker; does nothing once it ended."""


class Worker(Protocol):
    """One attention worker as the pool sees it."""

    @property
    def address(self) -> str:
        """Where it listens."""

    @property
    def info(self) -> WorkerInfo | None:
        """What it last said; None while it cannot be reached."""

    @property
    def num_active(self) -> int:
        """Sequences of this router on it."""

    def submit(self, submission: Submission) -> SequenceStream:
        """Start a sequence; failures come through the stream."""


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

    def find(self, prefixes: Sequence[bytes]) -> str | None:
        """Return the worker that holds the longest of these prefixes (shortest first)."""
        return next(
            (self._worker_of[prefix] for prefix in reversed(prefixes) if prefix in self._worker_of),
            None,
        )


def prefix_hashes(root: bytes, adapter: str, tokens: Sequence[int]) -> list[bytes]:
    """Return hashes of the prefixes at every stride, shortest first; tenants never share one."""
    running = hashlib.sha256(root + adapter.encode() + b"\0")
    hashes = []
    for end in range(PREFIX_STRIDE, len(tokens) + 1, PREFIX_STRIDE):
        chunk = tokens[end - PREFIX_STRIDE : end]
        running.update(b"".join(token.to_bytes(4, "little") for token in chunk))
        hashes.append(running.digest())
    return hashes


def pick_address(loads: Mapping[str, int], preferred: str | None) -> str:
    """Pick from workers with their loads (sequences): the preferred one unless it leads by far."""
    least = min(loads.values())
    if preferred is not None and preferred in loads and loads[preferred] - least <= MAX_IMBALANCE:
        return preferred
    return min(loads, key=lambda address: (loads[address], address))


class Pool:
    """A model and the workers that run it."""

    provider: Final = PROVIDER
    evidence: Final[Literal["native", "openai"]] = "native"
    gives_margins: Final = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.workers: dict[str, Worker] = {}
        self._memory = PrefixMemory()
        self._last_info: WorkerInfo | None = None

    @property
    def info(self) -> WorkerInfo | None:
        """What a worker of this pool last said, even if none can be reached now."""
        known = (worker.info for worker in self.workers.values())
        self._last_info = next((info for info in known if info is not None), self._last_info)
        return self._last_info

    @property
    def is_available(self) -> bool:
        """Whether a worker can take a sequence."""
        return any(worker.info is not None for worker in self.workers.values())

    def pick(
        self, tokens: Sequence[int], root: bytes, adapter: str, avoided: Collection[str] = ()
    ) -> Worker | None:
        """Return the worker for a prompt, or None when no worker can be reached.

        `avoided` names workers that lately failed this request; they are the last resort.
        """
        reachable = {a: w for a, w in self.workers.items() if w.info is not None}
        candidates = {a: w for a, w in reachable.items() if a not in avoided} or reachable
        if not candidates:
            return None
        self._last_info = next(iter(reachable.values())).info
        prefixes = prefix_hashes(root, adapter, tokens)
        loads = {address: _load(worker) for address, worker in candidates.items()}
        address = pick_address(loads, self._memory.find(prefixes))
        self._memory.remember(prefixes, address)
        return candidates[address]


def _load(worker: Worker) -> int:
    """Sequences on a worker: what it said of all routers, and at least what this one sent it."""
    info = worker.info
    return max(worker.num_active, info.num_running + info.num_waiting if info else 0)
