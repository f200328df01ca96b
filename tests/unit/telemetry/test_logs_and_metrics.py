"""Structured logs and metric names."""

import io
import json
import logging
import threading

import pytest
from opentelemetry import trace
from prometheus_client import CollectorRegistry, generate_latest

from understudy.rpc.metadata import set_current_request_id
from understudy.telemetry import Instruments, configure_logging, configure_tracing


@pytest.fixture
def output():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("router", "info", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


async def test_log_line_is_json_with_extra_fields_and_ids(output, recorder):
    set_current_request_id("req-3")
    with recorder.tracer.start_as_current_span("work") as span:
        logging.getLogger("x").info("Done in %d steps.", 4, extra={"pool": "slm"})
    logging.getLogger("x").debug("Hidden.")

    (line,) = lines(output)
    assert line["message"] == "Done in 4 steps."
    assert (line["service"], line["level"], line["pool"]) == ("router", "info", "slm")
    assert line["request_id"] == "req-3"
    assert line["trace_id"] == f"{span.get_span_context().trace_id:032x}"


def test_exception_is_one_line(output):
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("x").exception("Failed.", extra={"what": object()})

    (line,) = lines(output)
    assert "ValueError" in line["exception"]
    assert "object" in line["what"]


def test_metrics_are_named_after_service_and_unit():
    registry = CollectorRegistry()
    instruments = Instruments("router", registry)
    instruments.counter("requests", "Requests.", ("pool",)).labels("slm").inc()
    instruments.gauge("kv", "KV.", unit="bytes").set(5)
    instruments.histogram("ttft", "TTFT.", buckets=(0.1, 1.0)).observe(0.5)

    text = generate_latest(registry).decode()

    assert 'understudy_router_requests_total{pool="slm"} 1.0' in text
    assert "understudy_router_kv_bytes 5.0" in text
    assert 'understudy_router_ttft_seconds_bucket{le="1.0"} 1.0' in text


def test_tracing_without_an_endpoint_is_off():
    provider, num_threads = trace.get_tracer_provider(), threading.active_count()
    stop = configure_tracing("router", "", 1.0)
    assert trace.get_tracer_provider() is provider
    assert threading.active_count() == num_threads, "nothing exports"
    stop()
    assert trace.get_tracer_provider() is provider
