"""Every request has one root, every attempt one span below it, and workers learn their parent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, format_span_id, format_trace_id

from understudy.api.router.v1 import router_pb2
from understudy.testing.fake_attention import FakeReply

CALL = '{"name":"PlayMusic","arguments":{"genre":"jazz"}}'
TIMEOUT_S = 20.0


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    memory, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    for module in ("conductor", "tries"):
        monkeypatch.setattr(f"services.router.{module}.tracer", provider.get_tracer)
    yield memory
    provider.shutdown()


def snips() -> router_pb2.GenerateRequest:
    turn = router_pb2.Message(role=router_pb2.Message.ROLE_USER, content="play some jazz music")
    return router_pb2.GenerateRequest(messages=[turn], workload="snips")


async def test_an_escalated_request_is_one_tree(town: Any, exporter: InMemorySpanExporter) -> None:
    town.slm.reply = lambda _: FakeReply(CALL, margin=0.1)
    town.llm.reply = lambda _: FakeReply(CALL)
    house = await town.open()
    events = [event async for event in house.stub.Generate(snips(), timeout=TIMEOUT_S)]
    slm, llm, root = exporter.get_finished_spans()
    assert root.name == "router.generate"
    assert root.kind == SpanKind.SERVER
    assert root.attributes is not None
    assert root.attributes["understudy.escalated"] is True
    assert root.attributes["understudy.decision.reason"] == "low_confidence"
    decision = events[-1].finished.decision
    assert decision.trace_id == format_trace_id(root.context.trace_id)
    for span, worker, attempt in (
        (slm, town.slm, decision.attempts[0]),
        (llm, town.llm, decision.attempts[1]),
    ):
        assert span.name == "router.attempt"
        assert span.parent is not None and span.parent.span_id == root.context.span_id
        assert span.attributes is not None
        assert span.attributes["understudy.pool"] == attempt.pool
        assert span.attributes["gen_ai.usage.output_tokens"] == attempt.usage.completion_tokens
        assert span.attributes["understudy.cost"] == pytest.approx(attempt.cost)
        parent = worker.submissions[0].traceparent.split("-")
        assert parent[1:3] == [
            format_trace_id(root.context.trace_id),
            format_span_id(span.context.span_id),
        ]


async def test_a_caller_that_leaves_still_ends_its_spans(
    town: Any, exporter: InMemorySpanExporter
) -> None:
    town.slm.reply = lambda _: FakeReply(CALL, hold_after=3)
    house = await town.open()
    call = house.stub.Generate(snips(), timeout=TIMEOUT_S)
    await call.read()
    await town.slm.wait_until(lambda: len(town.slm.submissions) == 1)
    call.cancel()
    await town.slm.wait_until(lambda: len(town.slm.cancelled) == 1)
    assert {span.name for span in exporter.get_finished_spans()} >= {"router.attempt"}


async def test_a_refused_request_is_an_error_span_with_its_reason(
    town: Any, exporter: InMemorySpanExporter
) -> None:
    house = await town.open()
    call = house.stub.Generate(router_pb2.GenerateRequest(model="gpt-9", prompt="x"), timeout=5)
    with pytest.raises(Exception, match="gpt-9"):
        await call.read()
    (root,) = exporter.get_finished_spans()
    assert root.attributes is not None
    assert root.attributes["error.type"] == "NOT_FOUND"
    assert not root.status.is_ok


async def test_a_bug_is_an_error_span_counted_and_logged_once_under_both_ids(
    town: Any,
    exporter: InMemorySpanExporter,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the cause")

    house = await town.open()
    monkeypatch.setattr("services.router.plans.Planner.plan", broken)
    headers = {"x-request-id": "abc-1"}
    async with aiohttp.ClientSession(house.http_url) as http:
        body = {"prompt": "x"}
        async with http.post("/v1/completions", json=body, headers=headers) as response:
            assert response.status == 500
            assert "the cause" not in await response.text()
    (root,) = exporter.get_finished_spans()
    assert root.attributes is not None
    assert root.attributes["error.type"] == "INTERNAL"
    assert not root.status.is_ok
    assert house.metric("failures_total", reason="INTERNAL") == 1
    (told,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert told.exc_info and "the cause" in str(told.exc_info[1])
    assert vars(told)["request_id"] == "abc-1"
    assert vars(told)["trace_id"] == format_trace_id(root.context.trace_id)


async def test_a_bug_of_the_edge_itself_is_counted_and_logged(
    town: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the cause")

    house = await town.open()
    monkeypatch.setattr("services.router.http.bodies.parse_body", broken)
    headers = {"x-request-id": "abc-2"}
    async with (
        aiohttp.ClientSession(house.http_url, headers=headers) as http,
        http.post("/v1/completions", json={}) as response,
    ):
        assert (await response.json())["error"]["code"] == "internal"
    assert house.metric("failures_total", reason="INTERNAL") == 1
    assert "abc-2" in [vars(record).get("request_id") for record in caplog.records]
