"""Which expert worker computes which shards, and what a feed-forward in flight still lacks.

Pure functions and bookkeeping over plain data. A feed-forward is a `Call` for the partial sums of
all shards. Shards go to the replicas that the placement prefers; those of a worker that failed go
to another one, as the same work under the same (step, layer, micro-batch). Partial sums are added
in canonical shard order whoever computed them, so a failure changes nothing but the time.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from torch import Tensor

from understudy.errors import FailedPrecondition
from understudy.exchange.frame import MAX_MESSAGE_BYTES, Buffer, Header
from understudy.exchange.shards import whole_shards
from understudy.exchange.traces import MAX_SEGMENTS, SEGMENT
from understudy.model.config import ModelConfig
from understudy.model.ffn import sum_partials

FLOAT_BYTES: Final = 4
CHOICE_BYTES: Final = 6
"""Of one routed expert on the wire: its id (u16) and its weight (float32)."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One expert worker's share of a pool."""

    address: str
    layers: range
    shards: frozenset[int]
    preferred: frozenset[int]
    """Shards for which it is the first choice."""

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        address: str,
        layers: range,
        expert_ids: frozenset[int],
        preferred_ids: frozenset[int],
    ) -> Self:
        """Translate public expert ids into the shards of a model; half a shard is none."""
        size = config.num_ffn_shards, config.num_experts
        shards, preferred = (whole_shards(ids, *size) for ids in (expert_ids, preferred_ids))
        return cls(address, layers, shards, preferred)


@dataclass(frozen=True, slots=True)
class Placement:
    """Who holds what, as of an epoch."""

    epoch: int
    replicas: tuple[Replica, ...]


@dataclass(frozen=True, slots=True)
class Assignment:
    """Shards whose partial sum one worker computes: a single one, or a run that starts at 0.

    Only these can be added up by the worker without leaving the canonical order.
    """

    address: str
    first_shard: int
    num_shards: int

    @property
    def shards(self) -> range:
        """The shards covered."""
        return range(self.first_shard, self.first_shard + self.num_shards)


def choose_replicas(
    placement: Placement,
    layer: int,
    shards: Iterable[int],
    is_usable: Callable[[int, str], bool],
) -> list[Assignment]:
    """Assign each shard to its preferred usable replica, else to the next usable one.

    `is_usable` takes (shard, address). A shard that no usable replica holds is left out.
    """
    chosen: dict[int, str] = {}
    for shard in sorted(shards):
        holders = [
            replica
            for replica in placement.replicas
            if layer in replica.layers
            and shard in replica.shards
            and is_usable(shard, replica.address)
        ]
        if holders:
            preferred = [replica for replica in holders if shard in replica.preferred]
            chosen[shard] = (preferred or holders[shard % len(holders) :])[0].address
    return _merge(chosen)


def _merge(chosen: dict[int, str]) -> list[Assignment]:
    head = 0
    while head in chosen and chosen[head] == chosen[0]:
        head += 1
    merged = [Assignment(chosen[0], 0, head)] if head else []
    singles = [Assignment(chosen[shard], shard, 1) for shard in chosen if shard >= head]
    return merged + singles


def require_frames_fit(config: ModelConfig, token_budget: int) -> None:
    """Raise FailedPrecondition when a step's hidden states would not fit one message."""
    row_bytes = config.hidden_size * FLOAT_BYTES
    if config.is_moe:
        row_bytes += config.num_experts_per_token * CHOICE_BYTES
    most = (MAX_MESSAGE_BYTES - MAX_SEGMENTS * SEGMENT.size) // row_bytes
    if token_budget > most:
        raise FailedPrecondition(
            f"A token budget of {token_budget} at {row_bytes} bytes a token exceeds the"
            f" {MAX_MESSAGE_BYTES} bytes of a message to expert workers; set it to at most {most}.",
            {"token_budget": str(token_budget), "limit": str(most)},
        )


@dataclass(slots=True, eq=False)
class Call:
    """One feed-forward in flight: what is asked, what has come back. Waited for by one thread."""

    header: Header
    """Request header; epoch, lane, shards and time left are filled in for each sending."""
    pieces: Sequence[Buffer]
    unassigned: set[int]
    """Shards that are with no worker and have no sum."""
    started_s: float = 0.0
    """When it was given to whoever dispatches it."""
    deadline_s: float = 0.0
    """When whoever dispatches it gives up; set when it starts."""
    tried: set[tuple[int, str]] = field(default_factory=set)
    """(shard, address) pairs that failed."""
    last_failure: str = "no expert worker is connected"
    _sums: dict[int, Tensor] = field(default_factory=dict)
    _num_missing: int = 0
    _error: Exception | None = None
    _done: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._num_missing = len(self.unassigned)
        self._done.acquire()

    @property
    def is_done(self) -> bool:
        """Whether the sum, or the failure, is known."""
        return self._num_missing == 0 or self._error is not None

    def accept(self, assignment: Assignment, partial: Tensor) -> None:
        """Take the partial sum (T, D) of an assignment."""
        self._sums[assignment.first_shard] = partial
        self._num_missing -= assignment.num_shards
        if self._num_missing == 0:
            self._done.release()

    def drop(self, assignment: Assignment, failure: str, *, is_tried: bool) -> None:
        """Take back the shards of an assignment that failed."""
        self.unassigned.update(assignment.shards)
        self.last_failure = failure
        if is_tried:
            self.tried.update((shard, assignment.address) for shard in assignment.shards)

    def fail(self, error: Exception) -> None:
        """Give up; whoever waits gets the error."""
        if not self.is_done:
            self._error = error
            self._done.release()

    def wait(self) -> Tensor:
        """Return the sum (T, D) over all shards, added in canonical order.

        Raises Unavailable, or whatever else the call was failed with.
        """
        with self._done:
            if self._error is not None:
                raise self._error
        return sum_partials([self._sums[shard] for shard in sorted(self._sums)])
