"""Decides what the next step computes: continuous batching under a token budget.

Decodes go first, one token each plus whatever the grammar forced; chunks of prompts fill the rest
of the budget, so a long prompt slows running answers by a bounded amount (SplitFuse,
DeepSpeed-FastGen, arXiv 2401.08671). A prompt is admitted when all its blocks fit and one block is
left for every running sequence. When a running sequence cannot grow, the youngest running sequence
gives its blocks back and is recomputed later; its sealed blocks often still serve it then.

Pure bookkeeping: no tensors, no clock, no threads. The engine thread is its only caller.
"""

from bisect import insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from services.attention.blocks import BlockManager
from services.attention.sequence import Phase, Sequence, SequenceKey
from understudy.errors import ResourceExhausted

NextHash = Callable[[Sequence, int], bytes]


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """The next `num_tokens` tokens of a sequence."""

    sequence: Sequence
    num_tokens: int

    @property
    def is_sampling(self) -> bool:
        """Whether the step produces this sequence's next token."""
        return self.num_tokens == self.sequence.num_pending


class Scheduler:
    """Holds every live sequence of the worker in one of three places: loading, waiting, running."""

    def __init__(
        self,
        blocks: BlockManager,
        *,
        token_budget: int,
        max_sequences: int,
        max_waiting: int,
        next_hash: NextHash,
    ) -> None:
        """`next_hash(sequence, index)` names full block `index` of a sequence that shares KV."""
        self.blocks = blocks
        self._token_budget = token_budget
        self._max_sequences = max_sequences
        self._max_waiting = max_waiting
        self._next_hash = next_hash
        self._sequences: dict[SequenceKey, Sequence] = {}
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self.num_preemptions = 0

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for blocks or for their KV to arrive."""
        return len(self._sequences) - len(self._running)

    @property
    def is_idle(self) -> bool:
        """Whether no sequence could be computed now."""
        return not self._running and not self._waiting

    def sequences(self) -> list[Sequence]:
        """Return every live sequence in order of arrival."""
        return sorted(self._sequences.values(), key=_arrival)

    def get(self, key: SequenceKey) -> Sequence | None:
        """Return a live sequence."""
        return self._sequences.get(key)

    def check_room(self) -> None:
        """Raise ResourceExhausted when the queue is full."""
        if self.num_waiting >= self._max_waiting:
            raise ResourceExhausted(
                f"{self.num_waiting} sequences wait already and {self.blocks.num_free} of "
                f"{self.blocks.num_blocks} blocks are free; try again in a second.",
                {"reason": "no free blocks", "num_waiting": str(self.num_waiting)},
            )

    def add(self, sequence: Sequence, *, is_loading: bool) -> None:
        """Take in a sequence; a loading one is computed only after `end_loading`."""
        self._sequences[sequence.key] = sequence
        if is_loading:
            sequence.phase = Phase.LOADING
        else:
            self._wait(sequence)

    def end_loading(self, sequence: Sequence) -> None:
        """Let a loading sequence be computed."""
        if sequence.phase is Phase.LOADING:
            self._wait(sequence)

    def end(self, sequence: Sequence) -> None:
        """Forget a sequence and free its blocks at once."""
        del self._sequences[sequence.key]
        if sequence.phase is Phase.WAITING:
            self._waiting.remove(sequence)
        elif sequence.phase is Phase.RUNNING:
            self._running.remove(sequence)
            self._free(sequence)
        sequence.phase = Phase.ENDED

    def expired(self, now_s: float) -> list[Sequence]:
        """Return the live sequences whose deadline has passed."""
        return [s for s in self._sequences.values() if s.submission.deadline_s <= now_s]

    def next_deadline_s(self) -> float | None:
        """Return the earliest deadline of any live sequence."""
        return min((s.submission.deadline_s for s in self._sequences.values()), default=None)

    def schedule(self) -> list[ScheduledChunk]:
        """Return the chunks of the next step; every one has its blocks."""
        budget = self._token_budget
        chunks: list[ScheduledChunk] = []
        for sequence in self._candidates():
            if budget == 0:
                break
            count = min(sequence.num_pending, budget)
            if self._grow(sequence, count):
                chunks.append(ScheduledChunk(sequence, count))
                budget -= count
        while budget > 0 and (admitted := self._admit_next()) is not None:
            count = min(admitted.num_pending, budget)
            chunks.append(ScheduledChunk(admitted, count))
            budget -= count
        return chunks

    def advance(self, chunk: ScheduledChunk) -> None:
        """Record that a chunk was computed; seals the blocks it filled when KV is shared."""
        sequence = chunk.sequence
        sequence.num_computed += chunk.num_tokens
        sequence.computed_positions += chunk.num_tokens
        if not sequence.submission.kv_root:
            return
        for index in range(sequence.num_sealed, sequence.num_computed // self.blocks.block_size):
            self.blocks.seal(sequence.blocks[index], self._hash(sequence, index))
            sequence.num_sealed = index + 1

    def prefix_hashes(self, sequence: Sequence) -> list[bytes]:
        """Return the hashes of the full blocks that may be reused: never the last token."""
        if not sequence.submission.kv_root:
            return []
        num_full = (len(sequence.tokens) - 1) // self.blocks.block_size
        return [self._hash(sequence, index) for index in range(num_full)]

    def check_integrity(self) -> None:
        """Assert that blocks and sequences agree."""
        self.blocks.check_integrity(sequence.blocks for sequence in self._running)
        idle = (s for s in self._sequences.values() if s.phase is not Phase.RUNNING)
        assert not any(sequence.blocks for sequence in idle), "A waiting sequence holds blocks."

    def _hash(self, sequence: Sequence, index: int) -> bytes:
        while len(sequence.hashes) <= index:
            sequence.hashes.append(self._next_hash(sequence, len(sequence.hashes)))
        return sequence.hashes[index]

    def _candidates(self) -> Iterator[Sequence]:
        decoding = [sequence for sequence in self._running if sequence.is_decoding]
        prefilling = [sequence for sequence in self._running if not sequence.is_decoding]
        for sequence in (*decoding, *prefilling):
            if sequence.phase is Phase.RUNNING:  # an earlier one may have preempted it
                yield sequence

    def _grow(self, sequence: Sequence, count: int) -> bool:
        needed = self.blocks.blocks_for(sequence.num_computed + count) - len(sequence.blocks)
        while needed > 0:
            granted = self.blocks.allocate(needed)
            if granted is not None:
                sequence.blocks.extend(granted)
                break
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions += 1
        self._running.remove(sequence)
        self._free(sequence)
        sequence.num_computed = 0
        sequence.num_sealed = 0
        self._wait(sequence)

    def _free(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.blocks)
        sequence.blocks = []

    def _wait(self, sequence: Sequence) -> None:
        sequence.phase = Phase.WAITING
        insort(self._waiting, sequence, key=_arrival)

    def _admit_next(self) -> Sequence | None:
        if not self._waiting or len(self._running) >= self._max_sequences:
            return None
        sequence = self._waiting[0]
        matched = self.blocks.match(self.prefix_hashes(sequence))
        num_new = self.blocks.blocks_for(len(sequence.tokens)) - len(matched)
        needed = num_new + self.blocks.num_idle(matched) + len(self._running)
        if needed > self.blocks.num_free:
            return None
        self.blocks.acquire(matched)
        granted = self.blocks.allocate(num_new)
        assert granted is not None, "Free blocks were counted a line ago."
        sequence.blocks = [*matched, *granted]
        self._start(sequence, len(matched))
        return sequence

    def _start(self, sequence: Sequence, num_matched: int) -> None:
        del self._waiting[0]
        sequence.phase = Phase.RUNNING
        sequence.num_sealed = num_matched
        sequence.num_computed = num_matched * self.blocks.block_size
        sequence.prefill_target = len(sequence.tokens)
        self._count_cached(sequence, num_matched)
        insort(self._running, sequence, key=_arrival)

    def _count_cached(self, sequence: Sequence, num_matched: int) -> None:
        if sequence.is_admitted_once:  # a recomputed sequence has counted its prompt already
            return
        sequence.is_admitted_once = True
        loaded_end = sequence.num_local_blocks + sequence.num_loaded_blocks
        num_remote = max(0, min(num_matched, loaded_end) - sequence.num_local_blocks)
        num_local = num_matched - num_remote  # blocks that another sequence sealed meanwhile too
        block_size, num_prompt = self.blocks.block_size, sequence.submission.num_prompt_tokens
        sequence.local_cached_tokens = min(num_local * block_size, num_prompt)
        sequence.remote_cached_tokens = min(
            num_remote * block_size, num_prompt - sequence.local_cached_tokens
        )


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival
