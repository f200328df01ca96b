"""Who holds blocks: admission, growth and preemption of sequences, and the prefixes they share.

A prompt is admitted when all its blocks fit and one block is left for every running sequence. Room
is made by giving back held blocks, then by preempting less urgent sequences. A prompt whose next
block another sequence is about to seal waits for that block instead of computing it again.
"""

from bisect import insort
from collections import Counter
from collections.abc import Callable, Mapping
from enum import Enum

from services.attention.blocks import BlockManager
from services.attention.fairness import PREFILL_WEIGHT, TenantCounters
from services.attention.filling import StepPlan
from services.attention.grouping import HeldBlocks
from services.attention.preemption import (
    Preemption,
    Standing,
    choose_victim,
    victims_for_admission,
)
from services.attention.promises import Promises
from services.attention.sequence import Phase, Priority, Sequence
from services.attention.waiting import WaitingLine

NextHash = Callable[[Sequence, int], bytes]


class Admission(Enum):
    """What became of the try to admit a sequence."""

    ADMITTED = "admitted"
    AWAITS_PREFIX = "awaits_prefix"
    RELOADS = "reloads"
    NO_ROOM = "no_room"


class Residency:
    """The running sequences with their blocks, and the line of those that wait for some."""

    def __init__(
        self,
        blocks: BlockManager,
        counters: Mapping[Priority, TenantCounters],
        *,
        max_sequences: int,
        next_hash: NextHash,
    ) -> None:
        self.blocks = blocks
        self.running: list[Sequence] = []
        self.held = HeldBlocks(blocks)
        self.promises = Promises()
        self.line = WaitingLine(
            served=self._served,
            hashes=self.prefix_hashes,
            num_available=lambda hashes: len(blocks.match(hashes)),
        )
        self._preemptions: list[Preemption] = []
        self._reloads: list[Sequence] = []
        self._counters = counters
        self._max_sequences = max_sequences
        self._next_hash = next_hash

    def prefix_hashes(self, sequence: Sequence) -> list[bytes]:
        """Return the hashes of the full blocks that may be reused: never the last token."""
        if not sequence.submission.kv_root:
            return []
        num_full = (len(sequence.tokens) - 1) // self.blocks.block_size
        return [self._hash(sequence, index) for index in range(num_full)]

    def num_uncached(self, sequence: Sequence) -> int:
        """Return the prompt tokens that nobody has computed, is computing or waits to compute."""
        num_known = 0
        for chain_hash in self.prefix_hashes(sequence):
            is_known = (
                self.blocks.is_sealed(chain_hash)
                or self.promises.maker(chain_hash) is not None
                or self.line.demand.count(chain_hash) > 0
            )
            if not is_known:
                break
            num_known += 1
        return len(sequence.tokens) - num_known * self.blocks.block_size

    def wait(self, sequence: Sequence) -> None:
        """Put a sequence into the line; what is there of its prefix is held for it."""
        sequence.phase = Phase.WAITING
        sequence.num_uncached = self.num_uncached(sequence)
        self.line.add(sequence)
        for chain_hash in self.prefix_hashes(sequence):
            if not self.blocks.is_sealed(chain_hash):
                break
            self.held.hold(chain_hash)

    def quit_line(self, sequence: Sequence) -> None:
        """Take a sequence out of the line, and let go of what was held for it alone."""
        self.held.release(self.line.remove(sequence))

    def free(self, sequence: Sequence) -> None:
        """Take a running sequence's blocks away."""
        self.running.remove(sequence)
        self.promises.withdraw(sequence)
        self.blocks.release(sequence.blocks)
        sequence.blocks = []

    def seal(self, sequence: Sequence) -> None:
        """Make the blocks findable that a sequence has filled, when its KV is shared."""
        if not sequence.submission.kv_root:
            return
        for index in range(sequence.num_sealed, sequence.num_computed // self.blocks.block_size):
            chain_hash = self._hash(sequence, index)
            self.blocks.seal(sequence.blocks[index], chain_hash)
            self.promises.keep(chain_hash)
            if self.line.demand.count(chain_hash):
                self.held.hold(chain_hash)
            sequence.num_sealed = index + 1

    def take_preemptions(self) -> list[Preemption]:
        """Return who was preempted since the last call."""
        taken, self._preemptions = self._preemptions, []
        return taken

    def take_reloads(self) -> list[Sequence]:
        """Return who is to load again since the last call, and has not ended meanwhile."""
        taken, self._reloads = self._reloads, []
        return [sequence for sequence in taken if sequence.phase is Phase.LOADING]

    def grow(self, plan: StepPlan, sequence: Sequence, count: int) -> bool:
        """Give a running sequence the blocks of `count` more tokens; False when it had to yield."""
        needed = self.blocks.blocks_for(sequence.num_computed + count) - len(sequence.blocks)
        while needed > 0:
            granted = self.blocks.allocate(needed)
            if granted is not None:
                sequence.blocks.extend(granted)
                break
            if self.held.give_back(needed - self.blocks.num_free):
                continue
            standings = {self._standing(other): other for other in self.running}
            victim = standings[choose_victim(self._standing(sequence), list(standings))]
            self._preempt(plan, victim)
            if victim is sequence:
                return False
        return True

    def try_admit(self, plan: StepPlan, sequence: Sequence) -> Admission:
        """Start a waiting sequence when its blocks fit and no other is computing them."""
        hashes = self.prefix_hashes(sequence)
        matched = self.blocks.match(hashes)
        if self._awaits_prefix(sequence, hashes[len(matched) : len(matched) + 1]):
            return Admission.AWAITS_PREFIX
        if not self._make_room(plan, sequence, matched):
            return Admission.NO_ROOM
        if sequence.num_swapped > len(matched):
            self._reload(sequence, hashes[len(matched) : sequence.num_swapped])
            return Admission.RELOADS
        self._start(sequence, hashes, matched)
        return Admission.ADMITTED

    def _hash(self, sequence: Sequence, index: int) -> bytes:
        while len(sequence.hashes) <= index:
            sequence.hashes.append(self._next_hash(sequence, len(sequence.hashes)))
        return sequence.hashes[index]

    def _served(self, sequence: Sequence) -> int:
        return self._counters[sequence.priority].served(sequence.tenant)

    def _standing(self, sequence: Sequence) -> Standing:
        return Standing(
            sequence.priority,
            self._served(sequence),
            sequence.num_preemptions,
            sequence.arrival,
        )

    def _awaits_prefix(self, sequence: Sequence, next_hashes: list[bytes]) -> bool:
        """Whether one at least as urgent computes its next block; nobody waits for a lesser."""
        makers = (self.promises.maker(chain_hash) for chain_hash in next_hashes)
        return any(maker is not None and maker.priority <= sequence.priority for maker in makers)

    def _shortfall(self, sequence: Sequence, matched: list[int]) -> int:
        num_new = self.blocks.blocks_for(len(sequence.tokens)) - len(matched)
        needed = num_new + self.blocks.num_idle(matched) + len(self.running)
        return needed - self.blocks.num_free

    def _has_room(self, sequence: Sequence, matched: list[int]) -> bool:
        has_place = len(self.running) < self._max_sequences
        return has_place and self._shortfall(sequence, matched) <= 0

    def _make_room(self, plan: StepPlan, sequence: Sequence, matched: list[int]) -> bool:
        is_patient = sequence.priority is Priority.BATCH and bool(self.running)
        if not is_patient:
            self.held.give_back(self._shortfall(sequence, matched), kept=matched)
        if self._has_room(sequence, matched):
            return True
        standings = {self._standing(other): other for other in self.running}
        victims = [standings[s] for s in victims_for_admission(sequence.priority, list(standings))]
        if not victims or self._num_gained(victims, matched) < self._shortfall(sequence, matched):
            return False
        for victim in victims:
            self._preempt(plan, victim)
            self.held.give_back(self._shortfall(sequence, matched), kept=matched)
            if self._has_room(sequence, matched):
                return True
        return False

    def _num_gained(self, victims: list[Sequence], matched: list[int]) -> int:
        """Return how many blocks these victims and what is held leave free between them."""
        counts = Counter(self.held.table)
        for victim in victims:
            counts.update(victim.blocks)
        kept, num_references = set(matched), self.blocks.num_references
        return sum(
            num_references(block) == count and block not in kept for block, count in counts.items()
        )

    def _preempt(self, plan: StepPlan, sequence: Sequence) -> None:
        plan.withdraw(sequence)
        self._preemptions.append(Preemption(sequence, tuple(sequence.blocks), sequence.num_sealed))
        self.free(sequence)
        sequence.num_preemptions += 1
        sequence.num_computed = 0
        sequence.num_sealed = 0
        self.wait(sequence)

    def _reload(self, sequence: Sequence, hashes: list[bytes]) -> None:
        self.quit_line(sequence)
        sequence.phase = Phase.LOADING
        sequence.num_swapped = 0
        self.promises.make(sequence, hashes)
        self._reloads.append(sequence)

    def _start(self, sequence: Sequence, hashes: list[bytes], matched: list[int]) -> None:
        num_new = self.blocks.blocks_for(len(sequence.tokens)) - len(matched)
        self.blocks.acquire(matched)
        granted = self.blocks.allocate(num_new)
        assert granted is not None, "Free blocks were counted a moment ago."
        self.line.note_admission(sequence)
        self.quit_line(sequence)
        sequence.blocks = [*matched, *granted]
        sequence.phase = Phase.RUNNING
        sequence.num_stalled = 0
        sequence.num_swapped = 0
        sequence.num_sealed = len(matched)
        sequence.num_computed = len(matched) * self.blocks.block_size
        sequence.prefill_target = len(sequence.tokens)
        self.promises.make(sequence, hashes[len(matched) :])
        self._count_first(sequence, len(matched))
        insort(self.running, sequence, key=_arrival)

    def _count_first(self, sequence: Sequence, num_matched: int) -> None:
        if sequence.is_admitted_once:  # a recomputed sequence was counted and charged already
            return
        sequence.is_admitted_once = True
        self._counters[sequence.priority].charge(
            sequence.tenant, PREFILL_WEIGHT * sequence.num_pending
        )
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
