"""Pools of attention workers. Pure data; connections live in `clients`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

from services.router.answers import FinishReason
from services.router.placing import PrefixMemory, load_tokens, pick_address, prefix_hashes
from services.router.requests import Priority, Sampling
from understudy.grammar import GrammarSource

PROVIDER: Final = "understudy"
"""Who runs the models of native pools, in the GenAI conventions."""


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
    backlog_tokens: int = 0
    """Prompt tokens that it still has to read for all of them."""


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
    unread_tokens: int = 0
    """Prompt tokens that the worker will have to read, as far as its pool knows."""


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

    @property
    def unread_tokens(self) -> int:
        """Prompt tokens that it has to read for those of them that no token came of yet."""

    def submit(self, submission: Submission) -> SequenceStream:
        """Start a sequence; failures come through the stream."""


class Pick(NamedTuple):
    """The worker for a prompt."""

    worker: Worker
    unread_tokens: int
    """Tokens of the prompt that it will have to read, as far as is known here."""


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
    ) -> Pick | None:
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
        known = self._memory.find(prefixes)
        address = pick_address(loads, known)
        self._memory.remember(prefixes, address)
        num_shared = known[1] if known is not None and known[0] == address else 0
        return Pick(candidates[address], len(tokens) - num_shared)


def _load(worker: Worker) -> int:
    """Tokens: what a worker said of all routers, and at least what this one sent it."""
    own, info = load_tokens(worker.num_active, worker.unread_tokens), worker.info
    if info is None:
        return own
    return max(own, load_tokens(info.num_running + info.num_waiting, info.backlog_tokens))
