"""Keys, certificates, traces, resume, and our own edge as the engine."""

from __future__ import annotations

import json
import logging
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, format_span_id, format_trace_id

from deploy.certificates import Authority, Validity, publish
from services.router.clients import openai as client
from tests.contract.router.external import external, native, open_over, start
from tests.contract.router.parts import CALL, TIMEOUT_S, answer, chat, events, refusal, snips
from understudy.api.router.v1 import router_pb2
from understudy.api.types.v1 import types_pb2
from understudy.errors import Aborted, NotFound, Unavailable
from understudy.rpc import from_rpc_error
from understudy.testing.fake_attention import FakeReply
from understudy.testing.fake_engine import EngineReply, FakeEngine, spoken, text_chunk

KEY = "sk-very-secret"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


async def test_the_key_is_sent_rotated_and_never_logged(
    town: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LOOK_INTERVAL_S", 0.02)
    caplog.set_level(logging.DEBUG)
    file = town.directory / "key"
    file.write_text(f"{KEY}\n", encoding="utf-8")
    engine = FakeEngine(lambda _: spoken("Hello."), key=KEY)
    pool = external("llm", await start(town, engine), key_file=str(file))
    house = await town.open(pools=json.dumps([pool]))
    await answer(house, chat())
    assert engine.asked[0].headers["authorization"] == f"Bearer {KEY}"
    engine.key = f"{KEY}-2"
    file.write_text(engine.key, encoding="utf-8")
    seen = engine.num_looks
    await engine.wait_until(lambda: engine.num_looks > seen)
    await answer(house, chat())
    assert engine.asked[-1].headers["authorization"] == f"Bearer {KEY}-2"
    assert KEY not in caplog.text
    assert "Hello?" not in "".join(
        record.getMessage() for record in caplog.records if record.name.startswith("services.")
    )


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot be read"), ("two words", "no key"), ("\xff", "read")]
)
async def test_a_key_that_is_none_is_named_and_nothing_is_asked(
    town: Any, content: str | None, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = town.directory / "key"
    if content is not None:
        file.write_text(content, encoding="latin-1")
    engine = FakeEngine(lambda _: spoken("Hello."))
    pool = external("llm", await start(town, engine), key_file=str(file))
    house = await town.open(
        pools=json.dumps([pool]), llm_patience_s=0.1, startup_patience_s=0.1,
        controllers=("127.0.0.1:1",),
    )  # fmt: skip
    assert isinstance(await refusal(house, chat()), Unavailable)
    assert any(words in str(getattr(record, "cause", "")) for record in caplog.records)
    assert engine.asked == []


async def test_an_engine_without_the_model_gets_nothing(
    town: Any, caplog: pytest.LogCaptureFixture
) -> None:
    right, wrong = (FakeEngine(lambda _: spoken("Hello.")) for _ in range(2))
    wrong.cards["data"][0]["id"] = "another-model"
    house = await open_over(town, wrong, right)
    for _ in range(2):
        await answer(house, chat())
    assert (len(right.asked), wrong.asked) == (2, [])
    assert any("another-model" in str(getattr(r, "cause", "")) for r in caplog.records)


def serving(folder: Path, authority: Authority) -> ssl.SSLContext:
    chain, key = authority.issue("localhost", Validity.of(1, datetime.now(UTC)))
    publish(folder, {"tls.crt": chain, "tls.key": key})
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return context


async def test_engines_are_checked_against_the_pools_own_authority(town: Any) -> None:
    ours, other = (
        Authority.make(name, Validity.of(1, datetime.now(UTC))) for name in ("ours", "other")
    )
    (town.directory / "ca.crt").write_bytes(ours.pem)
    trusted, foreign = (
        FakeEngine(lambda _: spoken("Hello."), trust=serving(town.directory / name, authority))
        for name, authority in (("trusted", ours), ("foreign", other))
    )
    urls = [
        (await start(town, engine)).replace("127.0.0.1", "localhost")
        for engine in (trusted, foreign)
    ]
    pool = external("llm", *urls, ca_file=str(town.directory / "ca.crt"))
    house = await town.open(pools=json.dumps([pool]))
    for _ in range(2):
        await answer(house, chat())
    assert (len(trusted.asked), foreign.asked) == (2, [])


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    memory, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    for module in ("conductor", "tries", "clients.openai"):
        monkeypatch.setattr(f"services.router.{module}.tracer", provider.get_tracer)
    yield memory
    provider.shutdown()


async def test_every_try_has_a_span_that_the_engine_continues(
    town: Any, exporter: InMemorySpanExporter
) -> None:
    replies = iter([EngineReply(status=503, body=b" ")])
    engine = FakeEngine(lambda _: next(replies, spoken("Hello.")))
    house = await open_over(town, engine)
    await answer(house, chat())
    failed, answered, attempt, root = exporter.get_finished_spans()
    assert [failed.name, answered.name] == ["router.external"] * 2
    assert attempt.parent is not None
    assert attempt.parent.span_id == root.context.span_id
    for span, asked, status in ((failed, engine.asked[0], 503), (answered, engine.asked[1], 200)):
        assert span.kind == SpanKind.CLIENT
        assert span.parent is not None
        assert span.parent.span_id == attempt.context.span_id
        assert span.attributes is not None
        assert span.attributes["http.response.status_code"] == status
        assert span.attributes["gen_ai.provider.name"] == "openai"
        assert span.attributes["server.address"] == "127.0.0.1"
        assert asked.headers["traceparent"].split("-")[1:3] == [
            format_trace_id(root.context.trace_id),
            format_span_id(span.context.span_id),
        ]
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "UNAVAILABLE"
    assert attempt.attributes is not None
    assert attempt.attributes["understudy.attempt.gaps"] == ("margins", "resume")


async def test_a_partly_shown_answer_is_not_resumed_and_can_be_asked_again(
    town: Any, valkey_url: str
) -> None:
    replies = iter([EngineReply([text_chunk("Hel")], holds=True)])
    engine = FakeEngine(lambda _: next(replies, spoken("Hello.")))
    house = await open_over(town, engine, control_redis=valkey_url)
    request = chat(idempotency_key=f"once-{engine.url}")
    call = house.stub.Generate(request, timeout=TIMEOUT_S)
    token = (await call.read()).started.resume_token
    assert (await call.read()).delta.text == "Hel"
    call.cancel()
    await engine.wait_until(lambda: engine.num_left == 1)
    resuming = router_pb2.ResumeRequest(resume_token=token, received_deltas=1)
    with pytest.raises(Exception, match="cannot continue it") as caught:
        await events(house.stub.Resume(resuming, timeout=TIMEOUT_S))
    assert isinstance(from_rpc_error(caught.value), Aborted)  # type: ignore[arg-type]
    with pytest.raises(Exception, match="send the request again") as caught:
        await events(house.stub.Resume(resuming, timeout=TIMEOUT_S))
    assert isinstance(from_rpc_error(caught.value), NotFound)  # type: ignore[arg-type]
    deltas, end = await answer(house, request)
    assert "".join(delta.text for delta in deltas) == "Hello."
    assert not end.decision.is_resumable


async def test_a_finished_answer_is_told_again_with_its_gaps(town: Any, valkey_url: str) -> None:
    engine = FakeEngine(lambda _: spoken("Hello there."))
    house = await open_over(town, engine, control_redis=valkey_url)
    told = await events(house.stub.Generate(chat(), timeout=TIMEOUT_S))
    token = told[0].started.resume_token
    resuming = router_pb2.ResumeRequest(resume_token=token, received_deltas=1)
    again = await events(house.stub.Resume(resuming, timeout=TIMEOUT_S))
    assert again[-1].finished == told[-1].finished
    assert again[1].delta.text == "there."
    assert len(engine.asked) == 1


REQUESTS = {
    "chat": chat(sampling=types_pb2.SamplingParams(max_tokens=9, stop=["!"])),
    "sampled": chat(sampling=types_pb2.SamplingParams(temperature=0.7, seed=5, top_p=0.5, top_k=4)),
    "prompt": router_pb2.GenerateRequest(prompt="Once upon a time"),
    "workload": snips(),
    "workload-by-name": chat("play some jazz music", workload="snips"),
    "schema": chat(response_schema_json=json.dumps(SCHEMA)),
    "conversation": router_pb2.GenerateRequest(
        messages=[
            router_pb2.Message(role=router_pb2.Message.ROLE_SYSTEM, content="Be brief."),
            router_pb2.Message(role=router_pb2.Message.ROLE_USER, content="Grüße 🎵"),
        ]
    ),
}
REPLIES = {"workload": CALL, "workload-by-name": CALL, "schema": '{"a":1}'}


@pytest.mark.parametrize("kind", REQUESTS)
async def test_our_own_edge_as_the_engine_gives_what_the_native_pool_gives(
    town: Any, kind: str
) -> None:
    town.llm.reply = lambda _: FakeReply(REPLIES.get(kind, "A small answer. 🎵"))
    inner = await town.open(pools=json.dumps([native(town, "llm")]))
    pool = external("llm", f"{inner.http_url}/v1", model="llm")
    outer = await town.open(pools=json.dumps([pool]))
    request = REQUESTS[kind]
    direct, end = await answer(inner, request)
    through, far_end = await answer(outer, request)
    near, far = town.llm.submissions
    for submission in (near, far):
        submission.ClearField("sequence_id")
        submission.ClearField("time_left")
        submission.ClearField("traceparent")
    assert far == near
    assert _content(through) == _content(direct)
    assert far_end.usage == end.usage
    assert far_end.finish_reason == end.finish_reason


def _content(deltas: list[Any]) -> tuple[str, list[tuple[str, str]]]:
    return "".join(delta.text for delta in deltas), [
        (call.name, call.arguments_json) for delta in deltas for call in delta.tool_calls
    ]
