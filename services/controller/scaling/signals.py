"""What the controller sees of the pools at one moment, as plain data.

Counts come from the API server, loads from the workers' own metrics over the last window. A load
is None when no ready worker could be read: unknown is never the same as idle.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Part(StrEnum):
    """The two kinds of workers that a pool may have."""

    ATTENTION = "attention"
    EXPERTS = "experts"


@dataclass(frozen=True, slots=True)
class PodCounts:
    """The pods of one part."""

    desired: int
    """Replicas that its workload asks for now."""
    ready: int
    """Pods that take work."""
    starting: int = 0
    """Pods that are not ready yet and were not refused by the scheduler for too long."""
    unschedulable: int = 0
    """Pods that the scheduler has found no node for, for longer than the patience."""
    terminating: int = 0
    """Pods that drain; they hold their GPUs until they are gone."""
    reporting: int = 0
    """Ready pods whose metrics were read."""

    @property
    def existing(self) -> int:
        """Pods that hold GPUs or may get some at any moment."""
        return self.ready + self.starting + self.unschedulable + self.terminating


@dataclass(frozen=True, slots=True)
class AttentionLoad:
    """What the reporting attention workers did in the window, summed over them."""

    window_s: float
    """Length of the window."""
    running: int = 0
    """Sequences that hold blocks, now."""
    waiting: int = 0
    """Sequences that wait for blocks, now."""
    kv_occupancy: float = 0.0
    """Share of KV blocks that sequences hold, mean over workers, [0, 1]."""
    steps: float = 0.0
    """Engine steps."""
    step_s: float = 0.0
    """Seconds spent in them."""
    prefill_tokens: float = 0.0
    """Prompt positions computed."""
    decode_tokens: float = 0.0
    """Output positions computed."""
    ended: float = 0.0
    """Sequences that ended."""


@dataclass(frozen=True, slots=True)
class ExpertsLoad:
    """What the reporting expert workers did in the window, summed over them."""

    window_s: float
    """Length of the window."""
    frames: float = 0.0
    """Frames answered."""
    rows: float = 0.0
    """Token rows computed, times shards or experts."""
    compute_s: float = 0.0
    """Seconds of computing."""
    queue_wait_s: float = 0.0
    """Seconds that frames waited before they were computed, summed."""

    @property
    def rows_per_frame(self) -> float:
        """Tokens that one call brings to an expert worker."""
        return self.rows / self.frames if self.frames else 0.0

    @property
    def mean_wait_s(self) -> float:
        """Mean wait of a frame."""
        return self.queue_wait_s / self.frames if self.frames else 0.0


@dataclass(frozen=True, slots=True)
class PoolSignals:
    """One pool."""

    attention: PodCounts
    attention_load: AttentionLoad | None = None
    experts: PodCounts | None = None
    experts_load: ExpertsLoad | None = None
    ttft_s: float | None = None
    """90th percentile of the time to first token in the window; None without requests."""
    tpot_s: float | None = None
    """Mean time per output token in the window; None without steps."""
    held_requests: int = 0
    """Requests that routers hold because the pool has no worker."""


@dataclass(frozen=True, slots=True)
class Signals:
    """All pools at one moment."""

    at_s: float
    """Monotonic time."""
    pools: Mapping[str, PoolSignals] = field(default_factory=dict)
    """By name; a pool of the rules that is missing here could not be looked at."""
