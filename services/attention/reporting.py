"""What became of sequences, told to all who want to know: sessions, traces, metrics, experts."""

import math
import time
from collections.abc import Sequence

from opentelemetry.trace import Tracer

from services.attention.filling import ScheduledChunk
from services.attention.metrics import EngineMetrics
from services.attention.observers import StepObserver, TraceSegment
from services.attention.outputs import Failed, Finished, StepOutput, TokenRun
from services.attention.sequence import FinishReason, SequenceKey
from services.attention.sequence import Sequence as TokenSequence
from services.attention.tracing import SequenceTrace
from understudy.errors import UnderstudyError


class Reports:
    """Collects what happened, per session, until it is taken; follows every live sequence."""

    def __init__(self, metrics: EngineMetrics, tracer: Tracer, observer: StepObserver) -> None:
        self._metrics = metrics
        self._tracer = tracer
        self._observer = observer
        self._traces: dict[SequenceKey, SequenceTrace] = {}
        self._outputs: dict[int, StepOutput] = {}
        self._step = 0

    def begin(self, sequence: TokenSequence) -> None:
        """Follow a sequence from now on."""
        self._traces[sequence.key] = SequenceTrace(self._tracer, sequence)

    def traceparent(self, sequence: TokenSequence) -> str:
        """Return the trace context that work for a sequence belongs to; empty when not sampled."""
        return self._traces[sequence.key].traceparent

    def take(self) -> dict[int, StepOutput]:
        """Return what happened to each session since the last call."""
        outputs, self._outputs = self._outputs, {}
        return outputs

    def begin_step(
        self, step: int, chunks: Sequence[ScheduledChunk], deadline_s: float | None
    ) -> None:
        """Announce the next forward, and the earliest deadline of any live sequence."""
        self._step = step
        now_s = time.monotonic()
        for chunk in chunks:
            sequence = chunk.sequence
            priority = sequence.priority.name.lower()
            self._metrics.scheduled_tokens.labels(priority=priority).inc(chunk.num_tokens)
            if not sequence.computed_positions:
                waited_s = now_s - sequence.submitted_s
                self._metrics.queue_seconds.labels(priority=priority).observe(waited_s)
        segments = [
            TraceSegment(self.traceparent(chunk.sequence), chunk.num_tokens) for chunk in chunks
        ]
        self._observer.begin_step(step, segments, math.inf if deadline_s is None else deadline_s)

    def end_step(self, chunks: Sequence[ScheduledChunk], duration_s: float) -> None:
        """Count a forward that was computed; the chunks are not advanced yet."""
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        num_decoded = sum(chunk.num_tokens for chunk in chunks if chunk.sequence.is_decoding)
        metrics = self._metrics
        metrics.step_seconds.observe(duration_s)
        metrics.computed_tokens.labels(phase="decode").inc(num_decoded)
        metrics.computed_tokens.labels(phase="prefill").inc(num_tokens - num_decoded)

    def computed(self, chunk: ScheduledChunk, started_ns: int) -> None:
        """Add a chunk that was computed to its sequence's trace; it is not advanced yet."""
        phase = "decode" if chunk.sequence.is_decoding else "prefill"
        self._traces[chunk.sequence.key].note_step(phase, chunk.num_tokens, started_ns)

    def emit(self, sequence: TokenSequence, run: TokenRun) -> None:
        """Tell the session of new tokens."""
        if run.token_ids:
            self._metrics.generated_tokens.inc(len(run.token_ids))
            self._output(sequence).tokens.append(run)

    def preempted(self, how: str) -> None:
        """Count a sequence that gave its blocks back."""
        self._metrics.preemptions.labels(how=how).inc()

    def refuse(self, sequence: TokenSequence, cause: str, error: UnderstudyError) -> None:
        """Tell the session that a sequence is not taken in."""
        priority = sequence.priority.name.lower()
        self._metrics.refusals.labels(cause=cause, priority=priority).inc()
        self.fail(sequence, error)

    def cancel(self, sequence: TokenSequence) -> None:
        """Count a sequence that ended on its router's wish; the session hears nothing."""
        self._metrics.ended_sequences.labels(reason="cancelled").inc()
        self._end_trace(sequence).finish(sequence)

    def finish(self, sequence: TokenSequence, reason: FinishReason) -> None:
        """Tell the session that a sequence ended well."""
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

    def fail(self, sequence: TokenSequence, error: UnderstudyError) -> None:
        """Tell the session that a sequence failed."""
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
