"""Decides what the next step computes: continuous batching under a constant token budget.

Decodes go first, one token each plus whatever the grammar forced; chunks of prompts fill the rest
of the budget, so a long prompt slows running answers by a bounded amount (Dynamic SplitFuse,
DeepSpeed-FastGen, arXiv 2401.08671). The budget is a constant, and a smaller constant in steps in
which somebody waits for tokens: a prompt that delays nobody goes in large chunks.
Classes go in order of urgency; sequences of batch priority get at most their share of a step in
which others are live, so they fill gaps and delay nobody by more than that share. A class whose
next sequence finds no room holds back the less urgent ones. A running sequence that got nothing
for `MAX_STALLED_STEPS` steps is served first, with a fraction of the budget; `waiting` sees to it
that nobody waits for ever to run.

Pure bookkeeping: no tensors, no clock, no threads. The engine thread is its only caller.
"""

from collections.abc import Iterator
from typing import Final

from services.attention.blocks import BlockManager
from services.attention.fairness import DECODE_WEIGHT, TenantCounters
from services.attention.filling import ScheduledChunk, StepPlan, batch_budget, step_budget
from services.attention.forecast import Backlog, Outlook, outlook
from services.attention.preemption import Preemption
from services.attention.residency import Admission, NextHash, Residency
from services.attention.sequence import Phase, Priority, Sequence, SequenceKey
from understudy.errors import ResourceExhausted

__all__ = ["ScheduledChunk", "Scheduler"]

MAX_STALLED_STEPS: Final = 16
STALLED_SHARE: Final = 8
"""The part of a step, one in so many tokens, that a stalled sequence gets."""
BATCH_QUEUE_SHARE: Final = 2
"""The part of the queue, one in so many places, that batch priority may fill."""


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
        batch_share: float = 0.25,
        mixed_budget: int = 0,
        doubling_context: int = 0,
    ) -> None:
        """`next_hash(sequence, index)` names full block `index` of a sequence that shares KV.

        `batch_share` is the part of a step that batch priority gets while others are live;
        `mixed_budget` bounds steps that decode for others, in which tokens of prompts weigh more
        with their context (`step_budget`, `StepPlan`); 0 changes nothing.
        """
        self.blocks = blocks
        self._token_budget = token_budget
        self._mixed_budget = min(mixed_budget or token_budget, token_budget)
        self._doubling_context = doubling_context
        self._batch_share = batch_share
        self._max_waiting = max_waiting
        self._counters = {priority: TenantCounters() for priority in Priority}
        self._sequences: dict[SequenceKey, Sequence] = {}
        self._residency = Residency(
            blocks, self._counters, max_sequences=max_sequences, next_hash=next_hash
        )
        self._awaiting: set[SequenceKey] = set()
        self.num_deferrals = 0

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._residency.running)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for blocks or for their KV to arrive."""
        return len(self._sequences) - self.num_running

    @property
    def num_held_blocks(self) -> int:
        """Blocks that are kept for waiting sequences."""
        return len(self._residency.held)

    @property
    def num_backlog_tokens(self) -> int:
        """Prompt tokens that live sequences still have to have computed."""
        return sum(backlog.num_tokens for backlog in self._backlog())

    @property
    def num_tenants(self) -> int:
        """Tenants with live sequences, counted once per class."""
        return sum(counters.num_present for counters in self._counters.values())

    @property
    def is_idle(self) -> bool:
        """Whether no sequence could be computed now."""
        return not self._residency.running and not len(self._residency.line)

    def num_waiting_of(self, priority: Priority) -> int:
        """Return how many sequences of a class wait for blocks."""
        return self._residency.line.count(priority)

    def sequences(self) -> list[Sequence]:
        """Return every live sequence in order of arrival."""
        return sorted(self._sequences.values(), key=lambda sequence: sequence.arrival)

    def get(self, key: SequenceKey) -> Sequence | None:
        """Return a live sequence."""
        return self._sequences.get(key)

    def check_room(
        self, priority: Priority = Priority.STANDARD, retry_after_s: float = 1.0
    ) -> None:
        """Raise ResourceExhausted when the queue is full, for batch priority when half full."""
        share = BATCH_QUEUE_SHARE if priority is Priority.BATCH else 1
        if self.num_waiting >= -(-self._max_waiting // share):
            raise ResourceExhausted(
                f"{self.num_waiting} sequences wait already and {self.blocks.num_free} of "
                f"{self.blocks.num_blocks} blocks are free; try again in {retry_after_s:.3g} s.",
                {"reason": "no free blocks", "num_waiting": str(self.num_waiting)},
                retry_after_s=retry_after_s,
            )

    def outlook(self, sequence: Sequence, num_outputs: int) -> Outlook:
        """Return what has to be computed before a new sequence can have so many outputs."""
        own = self._residency.num_uncached(sequence)
        return outlook(
            Backlog(sequence.priority, sequence.tenant, own, is_running=False),
            self._backlog(),
            num_outputs=num_outputs,
            token_budget=self._token_budget,
        )

    def add(self, sequence: Sequence, *, is_loading: bool) -> None:
        """Take in a sequence; a loading one is computed only after `end_loading`."""
        self._sequences[sequence.key] = sequence
        self._counters[sequence.priority].arrive(sequence.tenant)
        if is_loading:
            sequence.phase = Phase.LOADING
            sequence.num_uncached = self._residency.num_uncached(sequence)
            self._residency.promises.make(sequence, self.prefix_hashes(sequence))
        else:
            self._residency.wait(sequence)

    def end_loading(self, sequence: Sequence) -> None:
        """Let a loading sequence be computed."""
        if sequence.phase is Phase.LOADING:
            self._residency.promises.withdraw(sequence)
            self._residency.wait(sequence)

    def end(self, sequence: Sequence) -> None:
        """Forget a sequence and free its blocks at once."""
        del self._sequences[sequence.key]
        self._awaiting.discard(sequence.key)
        if sequence.phase is Phase.WAITING:
            self._residency.quit_line(sequence)
        elif sequence.phase is Phase.RUNNING:
            self._residency.free(sequence)
        else:
            self._residency.promises.withdraw(sequence)
        sequence.phase = Phase.ENDED
        self._counters[sequence.priority].leave(sequence.tenant)

    def expired(self, now_s: float) -> list[Sequence]:
        """Return the live sequences whose deadline has passed."""
        return [s for s in self._sequences.values() if s.submission.deadline_s <= now_s]

    def next_deadline_s(self) -> float | None:
        """Return the earliest deadline of any live sequence."""
        return min((s.submission.deadline_s for s in self._sequences.values()), default=None)

    def schedule(self) -> list[ScheduledChunk]:
        """Return the chunks of the next step; every one has its blocks."""
        decoding = self._running(is_decoding=True)
        backlog = self._backlog()
        budget = step_budget(self._token_budget, self._mixed_budget, decoding, backlog)
        live = (*self._residency.running, *self._residency.line)
        doubling = self._doubling_context if budget < self._token_budget else 0
        plan = StepPlan(budget, batch_budget(budget, self._batch_share, live), doubling)
        self._serve_stalled(plan, budget)
        for sequence in decoding:
            self._serve(plan, sequence, plan.fitting(sequence))
        is_held_up = self._admit_overdue(plan)
        for priority in Priority:
            for sequence in self._running(is_decoding=False):
                if sequence.priority is priority:
                    self._serve(plan, sequence, plan.fitting(sequence))
            is_held_up = is_held_up or self._admit(plan, priority)
        self._note_stalls(plan)
        return plan.chunks

    def take_preemptions(self) -> list[Preemption]:
        """Return who was preempted since the last call; their blocks may be overwritten soon."""
        return self._residency.take_preemptions()

    def take_reloads(self) -> list[Sequence]:
        """Return the sequences, loading now, whose KV is to be fetched from the kvstore again."""
        return self._residency.take_reloads()

    def advance(self, chunk: ScheduledChunk) -> None:
        """Record that a chunk was computed; seals the blocks it filled when KV is shared."""
        sequence = chunk.sequence
        if sequence.is_decoding:
            counters = self._counters[sequence.priority]
            counters.charge(sequence.tenant, DECODE_WEIGHT * chunk.num_tokens)
        sequence.num_computed += chunk.num_tokens
        sequence.computed_positions += chunk.num_tokens
        self._residency.seal(sequence)

    def prefix_hashes(self, sequence: Sequence) -> list[bytes]:
        """Return the hashes of the full blocks that may be reused: never the last token."""
        return self._residency.prefix_hashes(sequence)

    def is_on_its_way(self, sequence: Sequence) -> bool:
        """Return whether another sequence is about to seal all of a new one's reusable prefix."""
        hashes = self.prefix_hashes(sequence)
        return bool(hashes) and self._residency.promises.maker(hashes[-1]) is not None

    def check_integrity(self) -> None:
        """Assert that blocks, line, promises and sequences agree, and that nothing leaks."""
        residency = self._residency
        self.blocks.check_integrity([*(s.blocks for s in residency.running), residency.held.table])
        by_phase: dict[Phase, set[SequenceKey]] = {phase: set() for phase in Phase}
        for sequence in self._sequences.values():
            by_phase[sequence.phase].add(sequence.key)
            assert sequence.phase is Phase.RUNNING or not sequence.blocks, "Blocks of an idle one."
        assert by_phase[Phase.RUNNING] == {s.key for s in residency.running}, "Running differs."
        assert by_phase[Phase.WAITING] == {s.key for s in residency.line}, "The line differs."
        if not by_phase[Phase.WAITING]:
            assert not len(residency.line.demand), "Prefixes are demanded by nobody."
            assert not len(residency.held), "Blocks are held for nobody."
        if not self._sequences:
            assert self.blocks.num_free == self.blocks.num_blocks, "Blocks have leaked."
            assert not len(residency.promises), "Promises are left of ended sequences."
            assert self.num_tenants == 0, "Tenants are present without a sequence."

    def _backlog(self) -> Iterator[Backlog]:
        for sequence in self._sequences.values():
            is_running = sequence.phase is Phase.RUNNING
            num_left = max(0, sequence.prefill_target - sequence.num_computed)
            num_tokens = num_left if is_running else sequence.num_uncached
            if num_tokens:
                yield Backlog(sequence.priority, sequence.tenant, num_tokens, is_running)

    def _running(self, *, is_decoding: bool) -> list[Sequence]:
        by_urgency = sorted(self._residency.running, key=lambda s: (s.priority, s.arrival))
        return [sequence for sequence in by_urgency if sequence.is_decoding is is_decoding]

    def _serve(self, plan: StepPlan, sequence: Sequence, room: int) -> None:
        if sequence.phase is not Phase.RUNNING or sequence in plan:
            return  # an earlier one has preempted it, or it was served as stalled
        count = min(sequence.num_pending, room)
        if count and self._residency.grow(plan, sequence, count):
            plan.add(sequence, count)

    def _serve_stalled(self, plan: StepPlan, budget: int) -> None:
        running = self._residency.running
        longest = max(running, key=lambda sequence: sequence.num_stalled, default=None)
        if longest is not None and longest.num_stalled >= MAX_STALLED_STEPS:
            self._serve(plan, longest, max(1, budget // STALLED_SHARE))

    def _note_stalls(self, plan: StepPlan) -> None:
        for sequence in self._residency.running:
            sequence.num_stalled = 0 if sequence in plan else sequence.num_stalled + 1

    def _admit_overdue(self, plan: StepPlan) -> bool:
        """Admit who waited for too long; return whether everyone has to wait for its room."""
        sequence = self._residency.line.overdue()
        if sequence is None or plan.room(sequence.priority) == 0:
            return False
        return self._try(plan, sequence) is Admission.NO_ROOM

    def _admit(self, plan: StepPlan, priority: Priority) -> bool:
        """Admit from one class; return whether its next sequence waits for room."""
        skipped: set[SequenceKey] = set()
        while plan.room(priority) > 0:
            sequence = self._residency.line.next(priority, skipped)
            if sequence is None:
                return False
            admission = self._try(plan, sequence)
            if admission is Admission.NO_ROOM:
                return True
            if admission is Admission.AWAITS_PREFIX:
                skipped.add(sequence.key)
        return False

    def _try(self, plan: StepPlan, sequence: Sequence) -> Admission:
        admission = self._residency.try_admit(plan, sequence)
        if admission is Admission.ADMITTED:
            self._awaiting.discard(sequence.key)
            plan.add(sequence, min(sequence.num_pending, plan.fitting(sequence)))
        elif admission is Admission.AWAITS_PREFIX and sequence.key not in self._awaiting:
            self._awaiting.add(sequence.key)
            self.num_deferrals += 1
        return admission
