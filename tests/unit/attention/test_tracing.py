"""Spans of a sequence: few, nested under the attempt, and adding up to what was computed."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, Tracer

from services.attention.sequence import Sequence
from services.attention.tracing import PHASE, SequenceTrace
from tests.unit.attention.parts import submission
from understudy.errors import Aborted
from understudy.telemetry import names

TRACE, SPAN = "ab" * 16, "cd" * 8
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> Tracer:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("test")


def sequence(traceparent: str) -> Sequence:
    from dataclasses import replace

    return Sequence(replace(submission(), traceparent=traceparent), 0)


def test_steps_are_aggregated_by_phase_under_the_sequence(
    tracer: Tracer, exporter: InMemorySpanExporter
):
    traced = sequence(SAMPLED)
    trace = SequenceTrace(tracer, traced)
    for phase, num_tokens in (("prefill", 2), ("prefill", 1), ("decode", 1), ("decode", 4)):
        trace.note_step(phase, num_tokens, started_ns=1)
        traced.computed_positions += num_tokens
    trace.finish(traced)
    *steps, root = exporter.get_finished_spans()
    assert root.name == names.ATTENTION_SEQUENCE
    assert f"{root.parent.span_id:016x}" == SPAN
    assert trace.traceparent == f"00-{TRACE}-{root.context.span_id:016x}-01"
    assert {span.parent.span_id for span in steps} == {root.context.span_id}
    found = {
        span.attributes[PHASE]: (
            span.attributes[names.NUM_STEPS],
            span.attributes[names.COMPUTED_TOKENS],
        )
        for span in steps
    }
    assert found == {"prefill": (2, 3), "decode": (2, 5)}
    assert root.attributes[names.COMPUTED_TOKENS] == 8
    assert root.attributes[names.PROMPT_TOKENS] == 3


def test_failure_is_the_status_of_the_span(tracer: Tracer, exporter: InMemorySpanExporter):
    traced = sequence(SAMPLED)
    SequenceTrace(tracer, traced).fail(traced, Aborted("The sequence was lost."))
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes[names.ERROR_TYPE] == "SEQUENCE_LOST"


@pytest.mark.parametrize("traceparent", ["", UNSAMPLED, "nonsense"])
def test_unsampled_attempt_makes_no_span(
    tracer: Tracer, exporter: InMemorySpanExporter, traceparent: str
):
    traced = sequence(traceparent)
    trace = SequenceTrace(tracer, traced)
    trace.note_step("prefill", 3, started_ns=1)
    trace.finish(traced)
    assert trace.traceparent == ""
    assert exporter.get_finished_spans() == ()
