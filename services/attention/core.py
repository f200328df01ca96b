"""The engine without its thread: schedule, run, postprocess.

Every method is called by one thread. What happened since the last `take_outputs` is collected per
session. A sequence that fails takes nobody with it; experts that cannot be reached fail the
sequences of that step, whose KV was not advanced; anything else that the forward raises is a bug
and leaves through `step`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from opentelemetry.trace import Tracer

from services.attention.admission import check_deadline, least_outputs, retry_after_s
from services.attention.decoding import Decoding
from services.attention.forecast import StepCosts
from services.attention.metrics import EngineMetrics
from services.attention.observers import StepInterrupted, StepObserver
from services.attention.outputs import StepOutput, TokenRun
from services.attention.reporting import Reports
from services.attention.scheduler import ScheduledChunk, Scheduler
from services.attention.sequence import FinishReason, Phase, Priority, SequenceKey, Submission
from services.attention.sequence import Sequence as TokenSequence
from services.attention.sharing import Payloads, Sharing
from understudy.errors import Aborted, DeadlineExceeded, Unavailable, UnderstudyError

OnLoaded = Callable[[SequenceKey, Payloads], None]


class Choice(NamedTuple):
    """The token that a forward chose for a sequence, with its evidence."""

    token: int
    logprob: float
    margin: float
    mask_loss: float


class Runner(Protocol):
    """The tensors: one forward over the chunks of a step."""

    def run(self, chunks: Sequence[ScheduledChunk]) -> list[Choice | None]:
        """Compute the chunks and choose a token for each sampling one, in order.

        Raises Unavailable when experts that compute elsewhere are away, and StepInterrupted when
        they are and this thread is wanted meanwhile.
        """
        ...


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The load of the engine after a step."""

    step: int = 0
    num_running: int = 0
    num_waiting: int = 0
    backlog_tokens: int = 0
    num_free_blocks: int = 0
    num_held_blocks: int = 0
    num_tenants: int = 0
    waiting_by_priority: tuple[int, ...] = (0,) * len(Priority)


class EngineCore:
    """All sequences of the worker and the loop body that advances them."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        runner: Runner,
        decoding: Decoding,
        observer: StepObserver,
        metrics: EngineMetrics,
        tracer: Tracer,
        sharing: Sharing | None,
        on_loaded: OnLoaded,
    ) -> None:
        """`on_loaded` brings fetched KV back to the engine thread from wherever it arrives."""
        self._scheduler = scheduler
        self._runner = runner
        self._decoding = decoding
        self._metrics = metrics
        self._sharing = sharing
        self._on_loaded = on_loaded
        self._reports = Reports(metrics, tracer, observer)
        self._costs = StepCosts()
        self._num_arrived = 0
        self._num_deferrals = 0
        self._step = 0
        metrics.blocks.set(scheduler.blocks.num_blocks)

    @property
    def is_idle(self) -> bool:
        """Whether a step would compute nothing."""
        return self._scheduler.is_idle

    @property
    def next_deadline_s(self) -> float | None:
        """When the next sequence expires, on the monotonic clock."""
        return self._scheduler.next_deadline_s()

    def stats(self) -> EngineStats:
        """Return the present load."""
        scheduler = self._scheduler
        return EngineStats(
            step=self._step,
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            backlog_tokens=scheduler.num_backlog_tokens,
            num_free_blocks=scheduler.blocks.num_free,
            num_held_blocks=scheduler.num_held_blocks,
            num_tenants=scheduler.num_tenants,
            waiting_by_priority=tuple(map(scheduler.num_waiting_of, Priority)),
        )

    def check_integrity(self) -> None:
        """Assert that blocks and sequences agree."""
        self._scheduler.check_integrity()

    def take_outputs(self) -> dict[int, StepOutput]:
        """Return what happened to each session since the last call."""
        return self._reports.take()

    def submit(self, submission: Submission) -> None:
        """Take in a checked submission; a refusal is an output like any other."""
        sequence = TokenSequence(submission, self._num_arrived, time.monotonic())
        self._num_arrived += 1
        self._reports.begin(sequence)
        try:
            self._check_room(submission.priority)
        except UnderstudyError as error:
            self._reports.refuse(sequence, "queue", error)
            return
        try:
            reason = self._begin_output(sequence)
        except UnderstudyError as error:
            self._reports.fail(sequence, error)
            return
        if reason is not None:
            self._reports.finish(sequence, reason)
            return
        try:
            self._check_deadline(sequence)
        except UnderstudyError as error:
            self._reports.refuse(sequence, "deadline", error)
            return
        is_covered = self._scheduler.is_on_its_way(sequence)
        is_loading = not is_covered and self._begin_loading(sequence)
        self._scheduler.add(sequence, is_loading=is_loading)

    def loaded(self, key: SequenceKey, payloads: Payloads) -> None:
        """Take fetched KV into the prefix cache and let its sequence be computed."""
        sequence = self._scheduler.get(key)
        if sequence is not None and self._sharing is not None:
            self._sharing.take_in(sequence, payloads)
            self._scheduler.end_loading(sequence)

    def cancel(self, key: SequenceKey) -> None:
        """End a sequence at once, without a word; unknown ones are ignored."""
        sequence = self._scheduler.get(key)
        if sequence is not None:
            self._scheduler.end(sequence)
            self._reports.cancel(sequence)

    def step(self) -> bool:
        """Advance the batch by one forward; return whether there was anything to compute."""
        self._expire()
        chunks = self._scheduler.schedule()
        self._swap()
        if not chunks:
            return False
        self._step += 1
        started_ns = time.time_ns()
        started_s = time.perf_counter()
        self._reports.begin_step(self._step, chunks, self.next_deadline_s)
        try:
            choices = self._runner.run(chunks)
        except StepInterrupted:
            return True  # nothing was advanced: who is left is scheduled again
        except Unavailable as error:
            self._lose(chunks, error)
            return True
        self._note_step(chunks, time.perf_counter() - started_s)
        for chunk, choice in zip(chunks, choices, strict=True):
            self._postprocess(chunk, choice, started_ns)
        return True

    def _check_room(self, priority: Priority) -> None:
        scheduler = self._scheduler
        delay_s = retry_after_s(self._costs, scheduler.num_waiting, scheduler.num_backlog_tokens)
        scheduler.check_room(priority, delay_s)

    def _begin_output(self, sequence: TokenSequence) -> FinishReason | None:
        run = TokenRun(sequence.key.sequence_id)
        reason = self._decoding.begin(sequence, run)
        self._reports.emit(sequence, run)
        return reason

    def _check_deadline(self, sequence: TokenSequence) -> None:
        submission = sequence.submission
        outlook = self._scheduler.outlook(sequence, least_outputs(submission))
        check_deadline(outlook, self._costs, submission.deadline_s - time.monotonic())

    def _begin_loading(self, sequence: TokenSequence) -> bool:
        hashes = self._scheduler.prefix_hashes(sequence)
        if self._sharing is None or not hashes:
            return False
        key = sequence.key
        return self._sharing.begin_loading(
            sequence,
            hashes,
            self._reports.traceparent(sequence),
            lambda payloads: self._on_loaded(key, payloads),
        )

    def _expire(self) -> None:
        for sequence in self._scheduler.expired(time.monotonic()):
            self._fail(
                sequence,
                DeadlineExceeded(
                    f"The deadline passed after {sequence.num_output} output tokens.",
                    {"num_output": str(sequence.num_output)},
                ),
            )

    def _swap(self) -> None:
        """Save the KV of who was just preempted where that pays, fetch that of who is to return."""
        for preemption in self._scheduler.take_preemptions():
            sequence, num_swapped = preemption.sequence, 0
            if self._sharing is not None:
                traceparent = self._reports.traceparent(sequence)
                num_swapped = self._sharing.swap_out(preemption, traceparent)
            if sequence.phase is Phase.WAITING:
                sequence.num_swapped = num_swapped
            self._reports.preempted("swap" if num_swapped else "recompute")
        for sequence in self._scheduler.take_reloads():
            if not self._begin_loading(sequence):
                self._scheduler.end_loading(sequence)

    def _lose(self, chunks: Sequence[ScheduledChunk], error: Unavailable) -> None:
        for chunk in chunks:
            lost = Aborted(f"The sequence was lost: {error.message}", error.metadata)
            self._fail(chunk.sequence, lost)

    def _note_step(self, chunks: Sequence[ScheduledChunk], duration_s: float) -> None:
        self._reports.end_step(chunks, duration_s)
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        self._costs.note(num_tokens, duration_s)
        self._metrics.deferrals.inc(self._scheduler.num_deferrals - self._num_deferrals)
        self._num_deferrals = self._scheduler.num_deferrals
        is_prefill = not any(chunk.sequence.is_decoding for chunk in chunks)
        if is_prefill and self._sharing is not None:
            self._sharing.note_prefill(num_tokens, duration_s)

    def _postprocess(self, chunk: ScheduledChunk, choice: Choice | None, started_ns: int) -> None:
        sequence = chunk.sequence
        was_decoding = sequence.is_decoding
        self._reports.computed(chunk, started_ns)
        self._scheduler.advance(chunk)
        if not was_decoding and sequence.is_decoding:
            self._write_back(sequence, 0)
        if choice is None:
            return
        run = TokenRun(sequence.key.sequence_id)
        try:
            reason = self._decoding.append(sequence, run, *choice)
        except UnderstudyError as error:
            self._fail(sequence, error)
            return
        self._reports.emit(sequence, run)
        if reason is not None:
            self._write_back(sequence, sequence.prefill_target // self._scheduler.blocks.block_size)
            self._scheduler.end(sequence)
            self._reports.finish(sequence, reason)

    def _write_back(self, sequence: TokenSequence, start: int) -> None:
        if self._sharing is not None:
            self._sharing.write_back(sequence, start, self._reports.traceparent(sequence))

    def _fail(self, sequence: TokenSequence, error: UnderstudyError) -> None:
        self._scheduler.end(sequence)
        self._reports.fail(sequence, error)
