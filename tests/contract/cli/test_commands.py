"""The commands against a router over real gRPC: what they print, and how they exit."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from understudy import FinishReason, ToolCall, Unauthenticated
from understudy.api.router.v1 import router_pb2
from understudy.cli.app import app
from understudy.local.traces import Span, TraceStore
from understudy.testing import FakeAnswer, FakeRouter

WEATHER = {"text": "weather in oslo", "tool": "GetWeather", "arguments": {"city": "Oslo"}}
MUSIC = {"text": "play jazz", "tool": "PlayMusic", "arguments": {"genre": "jazz"}}


def answer(request: router_pb2.GenerateRequest) -> FakeAnswer:
    """Always the weather in the place the user named last."""
    place = request.messages[-1].content.split()[-1]
    call = ToolCall("c1", "GetWeather", json.dumps({"city": place}))
    return FakeAnswer((), (call,), FinishReason.TOOL_CALLS)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of our own, where no platform runs."""
    monkeypatch.setenv("UNDERSTUDY_LOCAL_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def router() -> Iterator[FakeRouter]:
    with FakeRouter() as router:
        yield router


@pytest.fixture
def caller() -> Iterator[FakeRouter]:
    with FakeRouter(answer) as router:
        yield router


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=stdin)


def write_rows(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_help_names_every_command() -> None:
    found = run("--help")
    assert found.exit_code == 0
    names = ("up", "down", "status", "demo", "call", "chat", "trace", "eval")
    assert all(f" {name} " in found.output for name in names)


@pytest.mark.parametrize("name", ["up", "down", "status", "demo", "call", "chat", "trace", "eval"])
def test_every_command_has_a_help_text(name: str) -> None:
    found = run(name, "--help")
    assert found.exit_code == 0
    assert "Usage" in found.output


def test_call_prints_the_answer_and_the_decision(router: FakeRouter) -> None:
    found = run("call", "Hi", "--address", router.address, "--max-tokens", "7", "--model", "slm")
    assert found.exit_code == 0
    assert "Hello, world.\nanswered by llm · no calibrator" in found.output
    sent = router.calls[0].request
    assert (sent.model, sent.sampling.max_tokens) == ("slm", 7)
    assert sent.messages[0].content == "Hi"


def test_call_with_a_workloads_tools_prints_the_call(caller: FakeRouter) -> None:
    found = run("call", "weather in oslo", "--tools", "snips", "--address", caller.address)
    assert 'GetWeather({"city": "oslo"})' in found.output
    sent = caller.calls[0].request
    assert sent.workload == "snips"
    assert len(sent.tools) == 7


def test_call_takes_tools_and_schema_from_files(router: FakeRouter, elsewhere: Path) -> None:
    (elsewhere / "tools.json").write_text('[{"name": "f", "parameters": {"type": "object"}}]')
    (elsewhere / "schema.json").write_text('{"type": "string"}')
    assert run("call", "x", "--tools", "tools.json", "--address", router.address).exit_code == 0
    assert run("call", "x", "--schema", "schema.json", "--address", router.address).exit_code == 0
    first, second = (call.request for call in router.calls)
    assert first.tools[0].name == "f"
    assert second.response_schema_json == '{"type": "string"}'


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read"), ("{", "is not JSON"), ("{}", "no list of tools")],
)
def test_an_unusable_tools_file_is_named(
    router: FakeRouter, elsewhere: Path, content: str | None, words: str
) -> None:
    if content is not None:
        (elsewhere / "tools.json").write_text(content)
    found = run("call", "x", "--tools", "tools.json", "--address", router.address)
    assert found.exit_code == 2
    assert words in found.stderr
    assert "Traceback" not in found.output


def test_an_error_is_one_sentence_with_the_request_id(router: FakeRouter) -> None:
    router.fail_next(Unauthenticated("No tenant owns this [key]."))
    found = run("call", "x", "--address", router.address)
    assert found.exit_code == 2
    assert f"Error: No tenant owns this [key]. (request {router.calls[0].request_id})" in (
        found.stderr
    )


def test_the_api_key_comes_from_the_environment(
    router: FakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_API_KEY", "secret")
    run("call", "x", "--address", router.address)
    assert router.calls[0].authorization == "Bearer secret"


def test_without_a_platform_call_says_how_to_start_one() -> None:
    found = run("call", "x")
    assert found.exit_code == 1
    assert "understudy up" in found.stderr


def test_chat_remembers_what_was_said_and_forgets_what_failed(router: FakeRouter) -> None:
    router.fail_next(Unauthenticated("Not now."))
    found = run("chat", "--address", router.address, stdin="lost\n\none\ntwo\n")
    assert found.exit_code == 0
    assert "Not now." in found.output
    last = router.calls[-1].request.messages
    assert [message.content for message in last] == ["one", "Hello, world.", "two"]


def test_eval_scores_a_file_of_rows(caller: FakeRouter, elsewhere: Path) -> None:
    rows = write_rows(elsewhere / "rows.jsonl", WEATHER, MUSIC)
    found = run("eval", "--file", str(rows), "--json", "out/x.json", "--address", caller.address)
    assert found.exit_code == 0
    figures = json.loads((elsewhere / "out" / "x.json").read_text())
    assert list(figures) == [
        *("n", "exact_match", "tool_accuracy", "slot_f1", "schema_valid", "answered_by_slm"),
        *("cost", "cost_ratio_to_llm_only", "p50_s", "p99_s", "failed"),
    ]
    assert (figures["n"], figures["exact_match"], figures["failed"]) == (2, 0.5, 0)
    assert figures["schema_valid"] == 1.0
    assert "50.00 %" in found.output
    assert {call.request.model for call in caller.calls} == {"auto"}


def test_eval_beside_the_llm_gives_a_paired_interval(caller: FakeRouter, elsewhere: Path) -> None:
    rows = write_rows(elsewhere / "rows.jsonl", WEATHER, MUSIC)
    found = run(
        "eval", "--file", str(rows), "--compare-llm", "--json", "-", "--address", caller.address
    )
    figures = json.loads(found.stdout)
    assert figures["exact_match_difference"]["difference"] == 0.0
    assert figures["llm_only"]["n"] == 2
    assert "paired 95 % interval" in found.stderr
    assert [call.request.model for call in caller.calls] == ["auto", "auto", "llm", "llm"]


def test_a_failed_row_fails_the_evaluation_but_not_the_others(
    caller: FakeRouter, elsewhere: Path
) -> None:
    rows = write_rows(elsewhere / "rows.jsonl", WEATHER, WEATHER)
    caller.fail_next(Unauthenticated("Not you."))
    found = run("eval", "--file", str(rows), "--concurrency", "1", "--address", caller.address)
    assert found.exit_code == 1
    assert "failed: Not you." in found.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pool", "both"], "use auto, slm or llm"),
        (["--split", "train"], "use dev or calibration"),
        (["--file", "none.jsonl"], "cannot be read"),
        (["--file", "empty.jsonl"], "no rows"),
        (["--file", "bad.jsonl"], "line 1"),
    ],
)
def test_eval_refuses_what_it_cannot_score(
    elsewhere: Path, arguments: list[str], words: str
) -> None:
    (elsewhere / "empty.jsonl").write_text("\n")
    (elsewhere / "bad.jsonl").write_text('{"text": "x"}\n')
    found = run("eval", "--address", "127.0.0.1:1", *arguments)
    assert found.exit_code == 2
    assert words in found.stderr


def test_status_and_down_say_that_nothing_runs() -> None:
    found = run("status")
    assert found.exit_code == 1
    assert "understudy up" in found.output
    assert "No platform was up." in run("down").output


def test_a_bad_variable_stops_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_LOCAL_HTTP_PORT", "none")
    found = run("up")
    assert found.exit_code == 2
    assert "UNDERSTUDY_LOCAL_HTTP_PORT" in found.stderr


def test_trace_draws_the_latest_trace_and_writes_its_page(elsewhere: Path) -> None:
    store_path = elsewhere / "run" / "traces.sqlite"
    store_path.parent.mkdir()
    span = Span("ab" * 16, "cd" * 8, "", "router", "router.generate", 0, 9, False, "", {})
    with TraceStore.open(store_path) as store:
        store.add([span])
    found = run("trace", "--html", "page.html")
    assert found.exit_code == 0
    assert "router.generate" in found.output
    assert "router.generate" in (elsewhere / "page.html").read_text()
    missing = run("trace", "ef" * 16)
    assert missing.exit_code == 2
    assert f"no trace {'ef' * 16}" in missing.stderr


def test_trace_without_a_store_says_what_makes_one() -> None:
    found = run("trace", "--escalated")
    assert found.exit_code == 2
    assert "understudy up" in found.stderr
