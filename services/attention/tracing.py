"""Spans of one sequence: `attention.sequence`, and its forwards aggregated by phase.

A sequence makes at most three spans however many steps it takes. The traceparent it hands on (to
expert workers and the kvstore) is that of its own span; empty when the attempt is not sampled.
"""

import time
from typing import Final

from opentelemetry.trace import (
    INVALID_SPAN,
    Span,
    SpanContext,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)

from services.attention.sequence import Sequence
from understudy.errors import UnderstudyError
from understudy.telemetry import names, remote_context

PHASE: Final = "understudy.phase"


class _Phase:
    __slots__ = ("end_ns", "name", "num_steps", "num_tokens", "start_ns")

    def __init__(self, name: str, start_ns: int) -> None:
        self.name = name
        self.start_ns = start_ns
        self.end_ns = start_ns
        self.num_steps = 0
        self.num_tokens = 0


class SequenceTrace:
    """The spans of one sequence, open until `finish` or `fail`."""

    def __init__(self, tracer: Tracer, sequence: Sequence) -> None:
        parent = remote_context(sequence.submission.traceparent)
        self._tracer = tracer
        # Without a parent the span would become the root of a trace of its own.
        self._span: Span = (
            tracer.start_span(names.ATTENTION_SEQUENCE, context=parent)
            if get_current_span(parent).get_span_context().is_valid
            else INVALID_SPAN
        )
        self._phases: dict[str, _Phase] = {}
        self.traceparent = _traceparent(self._span.get_span_context())

    def note_step(self, phase: str, num_tokens: int, started_ns: int) -> None:
        """Add one forward of `num_tokens` rows that began at `started_ns` and ends now."""
        if not self.traceparent:
            return
        entry = self._phases.setdefault(phase, _Phase(phase, started_ns))
        entry.num_steps += 1
        entry.num_tokens += num_tokens
        entry.end_ns = time.time_ns()

    def finish(self, sequence: Sequence) -> None:
        """Close the spans of a sequence that ended well."""
        if self.traceparent:
            self._end(sequence)

    def fail(self, sequence: Sequence, error: UnderstudyError) -> None:
        """Close the spans of a sequence that failed."""
        if self.traceparent:
            self._span.set_status(Status(StatusCode.ERROR, error.message))
            self._span.set_attribute(names.ERROR_TYPE, error.reason)
            self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        context = set_span_in_context(self._span)
        for phase in self._phases.values():
            span = self._tracer.start_span(
                names.ATTENTION_STEPS,
                context=context,
                start_time=phase.start_ns,
                attributes={
                    PHASE: phase.name,
                    names.NUM_STEPS: phase.num_steps,
                    names.COMPUTED_TOKENS: phase.num_tokens,
                },
            )
            span.end(phase.end_ns)
        self._span.set_attributes(
            {
                names.PROMPT_TOKENS: sequence.submission.num_prompt_tokens,
                names.COMPUTED_TOKENS: sequence.computed_positions,
                names.CACHED_TOKENS: sequence.local_cached_tokens + sequence.remote_cached_tokens,
                names.ATTEMPT_TOKENS: sequence.num_output,
            }
        )
        self._span.end()


def _traceparent(context: SpanContext) -> str:
    if not context.is_valid or not context.trace_flags.sampled:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
