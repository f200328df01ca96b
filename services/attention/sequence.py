"""A sequence: one token stream, what was asked of it and how far it has come.

`Submission` is what the router sent, checked and immutable. `Sequence` is its mutable state, owned
by the engine thread from submission to its end.
"""

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

PackedMask = NDArray[np.int32]  # (ceil(V / 32),), bit i of word w allows token 32 w + i


class SequenceKey(NamedTuple):
    """Names a sequence within the worker: ids are unique within a session only."""

    session_id: int
    sequence_id: int


class Priority(IntEnum):
    """How urgent a sequence is; the smaller value goes first."""

    INTERACTIVE = 0
    STANDARD = 1
    BATCH = 2


class Matcher(Protocol):
    """The part of `understudy.grammar.Matcher` that decoding uses."""

    @property
    def is_stopped(self) -> bool:
        """Whether the output is complete and nothing may follow."""
        ...

    def mask(self) -> PackedMask:
        """Return which tokens may follow."""
        ...

    def accept(self, token: int) -> None:
        """Advance by one token; raises when the grammar does not allow it."""
        ...

    def forced(self) -> list[int]:
        """Return the tokens that must follow, without accepting them."""
        ...


class StopTexts(Protocol):
    """Watches the text of an output for stop texts."""

    def push(self, token: int) -> bool:
        """Add a token; return whether the text now contains a stop text."""
        ...


class FinishReason(Enum):
    """Why a sequence ended well."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class DecodingParams:
    """What the request asks of decoding; checked by `admission`."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One sequence as the router asked for it.

    `tokens` is the prompt followed by `num_committed` output tokens that a previous worker
    produced; the matcher and the stop texts have consumed those already. `deadline_s` is on the
    monotonic clock. An empty `kv_root` means that no KV is shared.
    """

    key: SequenceKey
    tokens: tuple[int, ...]
    deadline_s: float
    num_committed: int = 0
    params: DecodingParams = field(default_factory=DecodingParams)
    matcher: Matcher | None = None
    stop_texts: StopTexts | None = None
    adapter: str = ""
    kv_root: bytes = b""
    tenant: str = ""
    traceparent: str = ""
    priority: Priority = Priority.STANDARD

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens before the output."""
        return len(self.tokens) - self.num_committed


class Phase(Enum):
    """Where a sequence stands in the scheduler."""

    LOADING = "loading"
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


class Sequence:
    """The state of a sequence inside the engine.

    `tokens` are all tokens known so far, computed or not; the KV of the first `num_computed` of
    them is in `blocks`. `hashes` are the chain hashes of full blocks known so far, of which the
    first `num_sealed` blocks are sealed. `prefill_target` is where its present prefill ends.
    `num_stalled` steps in a row gave it nothing while it ran; it first waited at the worker's
    admission number `waiting_since`; `num_uncached` is the prefill it was thought to need when it
    began to wait. `num_swapped` blocks of it went to the kvstore when it was preempted.
    """

    __slots__ = (
        "arrival",
        "blocks",
        "computed_positions",
        "hashes",
        "is_admitted_once",
        "local_cached_tokens",
        "mask",
        "num_computed",
        "num_loaded_blocks",
        "num_local_blocks",
        "num_preemptions",
        "num_sealed",
        "num_stalled",
        "num_swapped",
        "num_uncached",
        "phase",
        "prefill_target",
        "remote_cached_tokens",
        "submission",
        "submitted_s",
        "tokens",
        "waiting_since",
    )

    def __init__(self, submission: Submission, arrival: int, submitted_s: float = 0.0) -> None:
        """`arrival` counts the sequences of the worker; `submitted_s` is on the monotonic clock."""
        self.submission = submission
        self.arrival = arrival
        self.tokens = list(submission.tokens)
        self.phase = Phase.WAITING
        self.blocks: list[int] = []
        self.hashes: list[bytes] = []
        self.num_sealed = 0
        self.num_computed = 0
        self.prefill_target = 0
        self.mask: PackedMask | None = None
        self.is_admitted_once = False
        self.num_local_blocks = 0
        self.num_loaded_blocks = 0
        self.local_cached_tokens = 0
        self.remote_cached_tokens = 0
        self.computed_positions = 0
        self.num_preemptions = 0
        self.num_stalled = 0
        self.num_swapped = 0
        self.num_uncached = 0
        self.waiting_since: int | None = None
        self.submitted_s = submitted_s

    @property
    def key(self) -> SequenceKey:
        """The sequence's name within the worker."""
        return self.submission.key

    @property
    def priority(self) -> Priority:
        """How urgent it is."""
        return self.submission.priority

    @property
    def tenant(self) -> str:
        """Whose it is; sequences without a tenant count as one tenant's."""
        return self.submission.tenant

    @property
    def num_pending(self) -> int:
        """Tokens whose KV is still to be computed."""
        return len(self.tokens) - self.num_computed

    @property
    def num_output(self) -> int:
        """Output tokens so far, committed ones included."""
        return len(self.tokens) - self.submission.num_prompt_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether its prefill is complete."""
        return self.num_computed >= self.prefill_target
