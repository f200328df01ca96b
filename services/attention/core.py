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

from services.attention.decoding import Decoding
from services.attention.metrics import EngineMetrics
from services.attention.observers import StepObserver, TraceSegment
from services.attention.outputs import Failed, Finished, StepOutput, TokenRun
from services.attention.scheduler import ScheduledChunk, Scheduler
from services.attention.sequence import FinishReason, SequenceKey, Submission
from services.attention.sequence import Sequence as TokenSequence
from services.attention.sharing import Payloads, Sharing
from services.attention.tracing import SequenceTrace
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

        Raises Unavailable when experts that compute elsewhere are away.
        """
        ...


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The load of the engine after a step."""

    step: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_free_blocks: int = 0


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
        self._observer = observer
        self._metrics = metrics
        self._tracer = tracer
        self._sharing = sharing
        self._on_loaded = on_loaded
        self._traces: dict[SequenceKey, SequenceTrace] = {}
        self._outputs: dict[int, StepOutput] = {}
        self._num_arrived = 0
        self._num_preemptions = 0
        self._step = 0

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
            num_free_blocks=scheduler.blocks.num_free,
        )

    def check_integrity(self) -> None:
        """Assert that blocks and sequences agree."""
        self._scheduler.check_integrity()

    def take_outputs(self) -> dict[int, StepOutput]:
        """Return what happened to each session since the last call."""
        outputs, self._outputs = self._outputs, {}
        return outputs

    def submit(self, submission: Submission) -> None:
        """Take in a checked submission; a refusal is an output like any other."""
        sequence = TokenSequence(submission, self._num_arrived)
        self._num_arrived += 1
        self._traces[sequence.key] = trace = SequenceTrace(self._tracer, sequence)
        try:
            self._scheduler.check_room()
            reason = self._begin_output(sequence)
        except UnderstudyError as error:
            self._report_failure(sequence, error)
            return
        if reason is not None:
            self._report_finish(sequence, reason)
            return
        self._scheduler.add(sequence, is_loading=self._begin_loading(sequence, trace.traceparent))

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
            self._metrics.ended_sequences.labels(reason="cancelled").inc()
            self._end_trace(sequence).finish(sequence)

    def step(self) -> bool:
        """Advance the batch by one forward; return whether there was anything to compute."""
        self._expire()
        chunks = self._scheduler.schedule()
        if not chunks:
            return False
        self._step += 1
        started_ns = time.time_ns()
        started_s = time.perf_counter()
        self._announce(chunks)
        try:
            choices = self._runner.run(chunks)
        except Unavailable as error:
            self._lose(chunks, error)
            return True
        duration_s = time.perf_counter() - started_s
        self._note_step(chunks, duration_s)
        for chunk, choice in zip(chunks, choices, strict=True):
            self._postprocess(chunk, choice, started_ns)
        return True

    def _begin_output(self, sequence: TokenSequence) -> FinishReason | None:
        run = TokenRun(sequence.key.sequence_id)
        reason = self._decoding.begin(sequence, run)
        self._emit(sequence, run)
        return reason

    def _begin_loading(self, sequence: TokenSequence, traceparent: str) -> bool:
        hashes = self._scheduler.prefix_hashes(sequence)
        if self._sharing is None or not hashes:
            return False
        key = sequence.key
        return self._sharing.begin_loading(
            sequence, hashes, traceparent, lambda payloads: self._on_loaded(key, payloads)
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

    def _announce(self, chunks: Sequence[ScheduledChunk]) -> None:
        segments = [
            TraceSegment(self._traces[chunk.sequence.key].traceparent, chunk.num_tokens)
            for chunk in chunks
        ]
        self._observer.begin_step(self._step, segments)

    def _lose(self, chunks: Sequence[ScheduledChunk], error: Unavailable) -> None:
        for chunk in chunks:
            lost = Aborted(f"The sequence was lost: {error.message}", error.metadata)
            self._fail(chunk.sequence, lost)

    def _note_step(self, chunks: Sequence[ScheduledChunk], duration_s: float) -> None:
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        num_decoded = sum(chunk.num_tokens for chunk in chunks if chunk.sequence.is_decoding)
        metrics = self._metrics
        metrics.step_seconds.observe(duration_s)
        metrics.computed_tokens.labels(phase="decode").inc(num_decoded)
        metrics.computed_tokens.labels(phase="prefill").inc(num_tokens - num_decoded)
        metrics.preemptions.inc(self._scheduler.num_preemptions - self._num_preemptions)
        self._num_preemptions = self._scheduler.num_preemptions
        if num_decoded == 0 and self._sharing is not None:
            self._sharing.note_prefill(num_tokens, duration_s)

    def _postprocess(self, chunk: ScheduledChunk, choice: Choice | None, started_ns: int) -> None:
        sequence = chunk.sequence
        was_decoding = sequence.is_decoding
        trace = self._traces[sequence.key]
        trace.note_step("decode" if was_decoding else "prefill", chunk.num_tokens, started_ns)
        self._scheduler.advance(chunk)
        if self._sharing is not None and not was_decoding and sequence.is_decoding:
            self._sharing.write_back(sequence, 0, trace.traceparent)
        if choice is None:
            return
        run = TokenRun(sequence.key.sequence_id)
        try:
            reason = self._decoding.append(sequence, run, *choice)
        except UnderstudyError as error:
            self._fail(sequence, error)
            return
        self._emit(sequence, run)
        if reason is not None:
            self._finish(sequence, reason, trace.traceparent)

    def _emit(self, sequence: TokenSequence, run: TokenRun) -> None:
        if run.token_ids:
            self._metrics.generated_tokens.inc(len(run.token_ids))
            self._output(sequence).tokens.append(run)

    def _finish(self, sequence: TokenSequence, reason: FinishReason, traceparent: str) -> None:
        if self._sharing is not None:
            self._sharing.write_back(
                sequence, sequence.prefill_target // self._scheduler.blocks.block_size, traceparent
            )
        self._scheduler.end(sequence)
        self._report_finish(sequence, reason)

    def _fail(self, sequence: TokenSequence, error: UnderstudyError) -> None:
        self._scheduler.end(sequence)
        self._report_failure(sequence, error)

    def _report_finish(self, sequence: TokenSequence, reason: FinishReason) -> None:
        metrics = self._metrics
        metrics.ended_sequences.labels(reason=reason.value).inc()
        metrics.cached_tokens.labels(source="local").inc(sequence.local_cached_tokens)
        metrics.cached_tokens.labels(source="remote").inc(sequence.remote_cached_tokens)
        self._end_trace(sequence).finish(sequence)
        self._output(sequence).finished.append(
            Finished(
                sequence_id=sequence.key.sequence_id,
                reason=reason,
                local_cached_tokens=sequence.local_cached_tokens,
                remote_cached_tokens=sequence.remote_cached_tokens,
                computed_positions=sequence.computed_positions,
            )
        )

    def _report_failure(self, sequence: TokenSequence, error: UnderstudyError) -> None:
        self._metrics.ended_sequences.labels(reason=error.reason.lower()).inc()
        self._end_trace(sequence).fail(sequence, error)
        self._output(sequence).failed.append(Failed(sequence.key.sequence_id, error))

    def _end_trace(self, sequence: TokenSequence) -> SequenceTrace:
        trace = self._traces.pop(sequence.key)
        if trace.traceparent:
            self._observer.end_trace(trace.traceparent)
        return trace

    def _output(self, sequence: TokenSequence) -> StepOutput:
        session_id = sequence.key.session_id
        return self._outputs.setdefault(session_id, StepOutput(self._step))
