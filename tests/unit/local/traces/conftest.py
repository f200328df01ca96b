"""An escalated request's trace, as the platform makes it."""

import pytest

from understudy.local.traces import Event, Span, Trace
from understudy.telemetry import names

TRACE_ID = "ab" * 16
START_NS = 1_700_000_000_000_000_000


def make_span(number, parent, name, service, start_ms, end_ms, trace_id=TRACE_ID, **fields):
    return Span(
        trace_id=trace_id,
        span_id=f"{number:016x}",
        parent_id=f"{parent:016x}" if parent else "",
        service=service,
        name=name,
        start_ns=START_NS + int(start_ms * 1e6),
        end_ns=START_NS + int(end_ms * 1e6),
        is_error=fields.pop("is_error", False),
        status_message=fields.pop("status_message", ""),
        attributes=fields.pop("attributes", {}),
        events=fields.pop("events", ()),
    )


def escalated_spans():
    return (
        make_span(
            1, 0, names.ROUTER_GENERATE, "router", 0, 100, attributes={names.ESCALATED: True}
        ),
        make_span(
            2, 1, names.ROUTER_ATTEMPT, "router", 0, 20,
            attributes={names.POOL: "slm", names.CONFIDENCE: 0.4212},
        ),
        make_span(3, 2, names.ATTENTION_SEQUENCE, "attention-slm", 5, 18),
        make_span(
            4, 1, names.ROUTER_ATTEMPT, "router", 25, 100, attributes={names.POOL: "llm"},
        ),
        make_span(5, 4, names.ATTENTION_SEQUENCE, "attention-llm", 30, 95),
        make_span(
            6, 5, names.KVSTORE_LOOKUP, "kvstore", 31, 33, is_error=True,
            status_message="the store is away",
            events=(Event(START_NS + 32_000_000, "timeout"),),
        ),
        make_span(
            7, 5, names.EXPERTS_COMPUTE, "experts", 35, 90,
            attributes={names.LAYER_FIRST: 0, names.LAYER_COUNT: 5, names.TOKENS: 40},
        ),
    )  # fmt: skip


@pytest.fixture
def span():
    return make_span


@pytest.fixture
def escalated():
    return Trace(TRACE_ID, escalated_spans())
