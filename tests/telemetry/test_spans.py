"""What services trace and what the schema declares: the same, both ways.

Each service runs in this process and is led through success and failure; every attribute that is
declared must be seen at least once, and nothing else may be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from deploy.telemetry.schema import CALLER, Schema
from services.attention.sequence import Sequence as TokenSequence
from services.attention.tracing import SequenceTrace
from services.experts.spans import ComputeSpan, SpanKey, export_span
from services.kvstore.memory import HostMemory
from services.kvstore.metrics import KvStoreMetrics
from services.kvstore.servicer import SERVICE, SPANS, KvStoreServicer
from services.kvstore.store import ChunkStore
from tests.contract.kvstore.parts import encoded, to_proto
from tests.contract.router.controllers import Sizing, serve_controller
from tests.contract.router.external import open_over
from tests.contract.router.parts import CALL, TIMEOUT_S, answer, chat, snips
from tests.unit.attention.parts import submission
from understudy.api.kvstore.v1 import kvstore_pb2, kvstore_pb2_grpc
from understudy.api.router.v1 import router_pb2
from understudy.errors import Aborted, InvalidArgument
from understudy.rpc import open_channel
from understudy.serving import ServingSettings, start_service
from understudy.testing.fake_attention import FakeReply
from understudy.testing.fake_engine import EngineReply, FakeEngine, spoken

ROUTER = {"router.generate", "router.attempt", "router.external"}
WORKERS = {"attention.sequence", "attention.steps", "experts.compute"}
KVSTORE = {"kvstore.lookup", "kvstore.get", "kvstore.put"}
HASHES = [bytes([number]) * 32 for number in range(2)]


def check(schema: Schema, spans: Sequence[ReadableSpan], names: set[str]) -> None:
    """Compare spans of these names with their declaration, both ways."""
    by_id = {span.context.span_id: span for span in spans if span.context}
    seen: dict[str, set[str]] = {name: set() for name in names}
    for span in (span for span in spans if span.name in names):
        declared, attributes = schema.spans[span.name], dict(span.attributes or {})
        assert declared.required <= attributes.keys() <= declared.attributes, span.name
        assert span.kind.name.lower() == declared.kind
        for name, value in attributes.items():
            assert schema.attributes[name].fits(value), f"{name} = {value!r}"
        above = by_id.get(span.parent.span_id) if span.parent else None
        assert (above.name if above else CALLER) in declared.parents
        seen[span.name] |= attributes.keys()
    assert seen == {name: schema.spans[name].attributes for name in names}


async def test_spans_of_the_router(
    town: Any, exporter: InMemorySpanExporter, schema: Schema
) -> None:
    sizing = Sizing()
    house = await town.open(controllers=(await serve_controller(town.stack, sizing),))

    async def answers(request: router_pb2.GenerateRequest) -> None:
        assert [event async for event in house.stub.Generate(request, timeout=TIMEOUT_S)]

    town.llm.reply = lambda _: FakeReply(CALL)
    await answers(snips())
    town.slm.reply = lambda _: FakeReply(CALL, margin=0.1)
    await answers(snips())
    await answers(router_pb2.GenerateRequest(prompt="Once", model="llm"))
    await town.llm.stop()
    held = asyncio.create_task(answers(chat()))
    await sizing.wait_for({"llm": 1})
    await town.llm.start()
    await held
    town.llm.reply = lambda _: FakeReply(CALL, fail_after=1, error=InvalidArgument("No."))
    with pytest.raises(grpc.aio.AioRpcError):
        await answers(chat())
    replies = iter([EngineReply(status=503, body=b" ")])
    outside = await open_over(town, FakeEngine(lambda _: next(replies, spoken("Hello."))))
    await answer(outside, chat())
    check(schema, exporter.get_finished_spans(), ROUTER)


def test_spans_of_an_attention_worker_and_its_experts(
    provider: TracerProvider, exporter: InMemorySpanExporter, schema: Schema
) -> None:
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("router.attempt") as attempt:
        context = attempt.get_span_context()
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
    for is_lost in (False, True):
        sequence = TokenSequence(replace(submission(), traceparent=parent), 0)
        trace = SequenceTrace(tracer, sequence)
        trace.note_step("prefill", 3, started_ns=1)
        export_span(ComputeSpan(SpanKey(trace.traceparent, 0, 0, 1), 5, 1, 2, tokens=3))
        if is_lost:
            trace.fail(sequence, Aborted("The sequence was lost."))
        else:
            trace.finish(sequence)
    check(schema, exporter.get_finished_spans(), WORKERS)


async def test_spans_of_a_kvstore(
    provider: TracerProvider, exporter: InMemorySpanExporter, schema: Schema
) -> None:
    store = ChunkStore(HostMemory(1 << 20), None, KvStoreMetrics.on(CollectorRegistry()))
    servicer = KvStoreServicer(store)
    service = await start_service(
        "kvstore", servicer.register, settings=ServingSettings(), services=[SERVICE], spans=SPANS
    )
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("attention.sequence") as sequence:
        context = sequence.get_span_context()
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
    headers = (("traceparent", parent),)
    async with open_channel(service.address) as channel:
        stub = kvstore_pb2_grpc.KvStoreServiceStub(channel)
        puts = [
            kvstore_pb2.PutRequest(chain=to_proto([one]), data=data)
            for one, data in zip(HASHES, encoded(HASHES), strict=True)
        ]
        good, bad = to_proto(HASHES), to_proto([b"short"])
        await stub.Put(iter(puts), timeout=TIMEOUT_S)
        await stub.Lookup(
            kvstore_pb2.LookupRequest(chain=good), metadata=headers, timeout=TIMEOUT_S
        )
        call = stub.Get(kvstore_pb2.GetRequest(chain=good), metadata=headers, timeout=TIMEOUT_S)
        assert len([answer async for answer in call]) == len(HASHES)
        refused = [
            stub.Lookup(kvstore_pb2.LookupRequest(chain=bad), metadata=headers, timeout=TIMEOUT_S),
            stub.Put(iter([kvstore_pb2.PutRequest(chain=bad)]), timeout=TIMEOUT_S),
            stub.Get(kvstore_pb2.GetRequest(chain=bad), metadata=headers, timeout=TIMEOUT_S).read(),
        ]
        errors = await asyncio.gather(*refused, return_exceptions=True)
        assert all(isinstance(error, grpc.aio.AioRpcError) for error in errors)
    await service.drain(1.0, asyncio.Event())
    check(schema, exporter.get_finished_spans(), KVSTORE)


def test_every_declared_span_is_checked_here(schema: Schema) -> None:
    assert schema.spans.keys() == ROUTER | WORKERS | KVSTORE
