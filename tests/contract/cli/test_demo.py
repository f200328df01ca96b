"""The demonstration against a router over real gRPC, with the platform's processes left out."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from understudy import Attempt, Decision, DecisionReason, FinishReason, InvalidArgument, ToolCall
from understudy import Usage as TokenUsage
from understudy.api.router.v1 import router_pb2
from understudy.cli import demo
from understudy.cli.app import app
from understudy.local.platform import Platform
from understudy.local.state import Phase, PlatformState, ServiceState
from understudy.local.traces import Span, TraceStore
from understudy.testing import FakeAnswer, FakeRouter
from understudy.workloads.snips.dataset import load_split

TRACE_ID = "ab" * 16
GOLD = {row.text: row.gold for row in load_split("dev")[: demo.NUM_ROWS]}


def attempt(pool: str, cost: float) -> Attempt:
    confidence = 0.3 if pool == "slm" else None
    return Attempt(
        pool, pool, "", TokenUsage(9, 9, 0), 3, confidence, 18, cost, 0.1, (), "127.0.0.1:1"
    )


def decision(*attempts: Attempt) -> Decision:
    cost = sum(attempt.cost for attempt in attempts)
    pool = attempts[-1].pool
    reason = DecisionReason.SLM_ACCEPTED if pool == "slm" else DecisionReason.LOW_CONFIDENCE
    return Decision(pool, reason, "snips", 0.5, attempts, cost, cost / 20, TRACE_ID, True)


def answer(request: router_pb2.GenerateRequest) -> FakeAnswer:
    """Every utterance right; those with an even length by the SLM."""
    text = request.messages[-1].content
    if text not in GOLD:
        return FakeAnswer(("Because.",), decision=decision(attempt("llm", 20.0)))
    attempts = [attempt("slm", 2.0)] if len(text) % 2 == 0 else []
    if request.model == "llm":
        attempts = [attempt("llm", 20.0)]
    elif not attempts:
        attempts = [attempt("slm", 2.0), attempt("llm", 20.0)]
    call = ToolCall("c", GOLD[text].name, json.dumps(dict(GOLD[text].arguments)))
    return FakeAnswer((), (call,), FinishReason.TOOL_CALLS, decision=decision(*attempts))


@pytest.fixture
def router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRouter]:
    """A router in place of the platform, and a store with the trace of all its answers."""
    traces = tmp_path / "traces.sqlite"
    names = ("router", "attention-llm", "experts", "kvstore")
    with TraceStore.open(traces) as store:
        store.add(
            Span(TRACE_ID, f"{i:016x}", f"{i - 1:016x}" if i > 1 else "", name, name, i, 9, False,
                 "", {})
            for i, name in enumerate(names, 1)
        )  # fmt: skip
    with FakeRouter(answer) as router:
        port = int(router.address.rpartition(":")[2])
        services = [ServiceState("router", Phase.READY, port=port)]
        state = PlatformState(1, "", Phase.READY, traces=str(traces), services=services)

        @contextmanager
        def platform(*_: object) -> Iterator[Platform]:
            yield Platform(tmp_path, state)

        monkeypatch.setattr(demo, "private_platform", platform)
        monkeypatch.setenv("COLUMNS", "160")
        yield router


def test_the_demo_shows_answers_summary_and_waterfall(router: FakeRouter, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "out")])
    assert found.exit_code == 0, found.output
    report = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert (report["requests"], report["failed"]) == (63, 0)
    assert report["answered_by_slm"] + report["escalated"] == demo.NUM_ROWS
    assert report["exact_match"] == report["llm_only_exact_match"] == 1.0
    assert 0.1 < report["cost_ratio"] < 1.1
    assert report["services_in_trace"] == ["attention", "experts", "kvstore", "router"]
    assert TRACE_ID in (tmp_path / "out" / "trace.html").read_text()
    assert "63 requests, 0 failed" in found.output
    assert "Why is the sky blue?" in found.output
    assert f"trace {TRACE_ID}" in found.output
    assert len(router.calls) == 2 * demo.NUM_ROWS + 3


def test_the_demo_fails_when_a_request_does(router: FakeRouter, tmp_path: Path) -> None:
    router.fail_next(InvalidArgument("Refused for the test."))
    found = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "out")])
    assert found.exit_code == 1
    assert "failed: Refused for the test." in found.output
    assert json.loads((tmp_path / "out" / "demo.json").read_text())["failed"] == 1
