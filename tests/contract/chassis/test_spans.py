"""Spans of served calls, whatever becomes of the call."""

import asyncio

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry

from understudy import errors
from understudy.api.distiller.v1 import distiller_pb2
from understudy.rpc import extract
from understudy.serving import ServingSettings
from understudy.serving.observation import CallObserver
from understudy.telemetry import Instruments, SpanStream, names

SERVICE = "understudy.api.distiller.v1.DistillerService"
SPANS = {f"/{SERVICE}/Submit": "probe.submit", f"/{SERVICE}/Watch": "probe.watch"}


@pytest.fixture
def exporter(monkeypatch):
    """Everything recorded by services started in the test."""
    recorded = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(recorded))
    monkeypatch.setattr("understudy.serving.running.tracer", provider.get_tracer)
    return recorded


@pytest.fixture
def client(exporter):
    """A tracer for the caller's side."""
    provider = TracerProvider(shutdown_on_exit=False)
    return provider.get_tracer("client")


async def finished(running, exporter):
    """The one span of a service that has ended."""
    await running.service.drain(10.0)
    (span,) = exporter.get_finished_spans()
    return span


async def test_call_is_a_child_of_the_callers_span(start, exporter, client):
    running = await start(spans=SPANS)

    with client.start_as_current_span("caller") as caller:
        response = await running.stub.Submit(distiller_pb2.SubmitRequest())

    span = await finished(running, exporter)
    assert span.name == "probe.submit"
    assert span.kind is SpanKind.SERVER
    assert span.parent.span_id == caller.get_span_context().span_id
    assert span.attributes[names.RPC_STATUS] == "OK"
    assert f"{span.context.span_id:016x}" in response.run.error


async def test_streaming_call_passes_the_trace_context_too(start, exporter, client):
    running = await start(spans=SPANS)

    with client.start_as_current_span("caller") as caller:
        call = running.stub.Watch(distiller_pb2.WatchRequest())
        responses = [response async for response in call]

    span = await finished(running, exporter)
    assert span.parent.span_id == caller.get_span_context().span_id
    assert f"{span.context.span_id:016x}" in responses[-1].run.error


async def test_unlisted_method_gets_no_span_but_the_callers_context(start, exporter, client):
    running = await start()

    with client.start_as_current_span("caller") as caller:
        response = await running.stub.Submit(distiller_pb2.SubmitRequest())

    await running.service.drain(10.0)
    assert exporter.get_finished_spans() == ()
    assert f"{caller.get_span_context().span_id:016x}" in response.run.error


async def test_failed_call_is_an_error_with_its_code(start, exporter):
    running = await start(spans=SPANS)
    running.probe.error = errors.NotFound("No such run.")
    with pytest.raises(grpc.RpcError):
        await running.stub.Submit(distiller_pb2.SubmitRequest())

    span = await finished(running, exporter)

    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes[names.ERROR_TYPE] == "NOT_FOUND"


async def test_cancelled_stream_ends_its_span(start, exporter):
    running = await start(spans=SPANS)
    call = running.stub.Watch(distiller_pb2.WatchRequest(run_id="wait"))
    await anext(aiter(call))
    call.cancel()
    await running.probe.closed.wait()

    span = await finished(running, exporter)

    assert span.attributes[names.RPC_STATUS] == "CANCELLED"
    assert span.status.status_code is StatusCode.UNSET


async def test_never_read_stream_ends_its_span(start, exporter):
    running = await start(spans=SPANS)
    call = running.stub.Watch(distiller_pb2.WatchRequest(run_id="flood"))
    await running.probe.started.wait()
    call.cancel()
    await running.probe.closed.wait()

    span = await finished(running, exporter)

    assert span.attributes[names.RPC_STATUS] == "CANCELLED"


async def test_call_past_the_servers_maximum_ends_its_span(start, exporter):
    running = await start(spans=SPANS, settings=ServingSettings(max_call_s=0.1))
    with pytest.raises(grpc.RpcError):
        async for _ in running.stub.Watch(distiller_pb2.WatchRequest(run_id="wait")):
            pass

    span = await finished(running, exporter)

    assert span.attributes[names.RPC_STATUS] == "DEADLINE_EXCEEDED"
    assert span.status.status_code is StatusCode.ERROR


async def test_call_past_its_callers_deadline_ends_its_span(start, exporter):
    running = await start(spans=SPANS)
    with pytest.raises(grpc.RpcError):
        async for _ in running.stub.Watch(distiller_pb2.WatchRequest(run_id="wait"), timeout=0.2):
            pass
    await running.probe.closed.wait()

    span = await finished(running, exporter)

    # The caller's clock starts first, so its leaving may arrive before our own deadline.
    assert span.attributes[names.RPC_STATUS] in ("DEADLINE_EXCEEDED", "CANCELLED")


async def test_clients_stream_span_covers_a_grpc_call(start, exporter):
    running = await start()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    call = running.stub.Watch(distiller_pb2.WatchRequest(run_id="wait"))

    async with SpanStream(provider.get_tracer("client"), "watching", call) as stream:
        await anext(stream)

    (span,) = exporter.get_finished_spans()
    assert span.attributes[names.STREAM_OUTCOME] == "cancelled"
    await running.probe.closed.wait()
    assert call.cancelled()


async def test_malformed_traceparent_starts_a_new_trace(exporter):
    observer = CallObserver(
        TracerProvider(shutdown_on_exit=False).get_tracer("x"),
        Instruments("serving", CollectorRegistry()),
        SPANS,
    )
    with observer.observed(f"/{SERVICE}/Submit", {"traceparent": "garbage"}) as outcome:
        await asyncio.sleep(0)
        outcome.code = "OK"
    assert not extract({"traceparent": "garbage"})
