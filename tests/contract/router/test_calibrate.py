"""A calibrator measured through an engine is one that the router then goes by."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from services.router.calibrate import calibrate, main
from services.router.settings import RouterSettings
from tests.contract.router.external import external, start
from tests.contract.router.parts import answer, chat
from understudy.api.types.v1 import types_pb2
from understudy.errors import FailedPrecondition, InvalidArgument
from understudy.registry import read_version
from understudy.testing.fake_engine import (
    DONE,
    Asked,
    EngineReply,
    FakeEngine,
    call_chunk,
    finish_chunk,
    spoken,
    usage_chunk,
)
from understudy.workloads import ToolCall, find_workload
from understudy.workloads.snips.dataset import Row, load_split

MODEL = "small@0123abcd"
NUM_ROWS = 80
ROWS = load_split("calibration")[:NUM_ROWS]
GOLD = {row.text: row.gold for row in load_split("calibration")}
WRONG = ToolCall("GetWeather", {"city": "nowhere"})


def called(call: ToolCall, margin: float | None, num_tokens: int = 1) -> EngineReply:
    event = call_chunk(call.name, json.dumps(dict(call.arguments)), margin=margin)
    counts = usage_chunk(40, num_tokens)
    return EngineReply([event, finish_chunk("tool_calls"), counts, DONE])


def teacher(asked: Asked) -> EngineReply:
    return called(GOLD[asked.body["messages"][0]["content"]], None, 9)


def student(asked: Asked) -> EngineReply:
    """Right where it is sure: three times of four."""
    text = asked.body["messages"][0]["content"]
    draw = random.Random(text).random()
    is_right = draw < 0.75
    return called(GOLD[text] if is_right else WRONG, 0.9 - draw / 5 if is_right else 0.2 * draw)


async def open_engines(town: Any, **more: Any) -> tuple[RouterSettings, list[dict[str, Any]]]:
    small, large = FakeEngine(student, model=MODEL), FakeEngine(teacher)
    slm = external("slm", await start(town, small), model=MODEL, logprobs=True)
    slm["position_parameters"] = 100
    pools = [{**slm, **more}, external("llm", await start(town, large))]
    return RouterSettings(pools=json.dumps(pools), llm_patience_s=5.0), pools


async def test_a_measured_version_is_trusted_where_its_answers_were_right(town: Any) -> None:
    settings, pools = await open_engines(town)
    out = town.directory / "measured"
    operation = await calibrate(settings, find_workload("snips"), ROWS, out, 8)
    assert operation.threshold is not None
    assert 0.6 < operation.coverage < 0.9
    assert operation.cost_ratio < 0.5
    version = read_version(out)
    assert (version.id, version.evidence) == (MODEL, "openai")
    facts = json.loads((out / "manifest.json").read_text())["facts"]
    assert (facts["calibration_rows"], facts["llm_exact_match"]) == (NUM_ROWS, 1.0)
    pools[0]["version_dir"] = str(out)
    house = await town.open(pools=json.dumps(pools), tokenizer=None)
    answered = {}
    for row in load_split("calibration")[NUM_ROWS : NUM_ROWS + 12]:
        _, end = await answer(house, chat(row.text, workload="snips"))
        is_right = random.Random(row.text).random() < 0.75
        answered[is_right] = end.decision.pool
        assert end.decision.pool == ("slm" if is_right else "llm")
    assert answered == {True: "slm", False: "llm"}
    assert end.decision.reason in (
        types_pb2.Decision.REASON_SLM_ACCEPTED,
        types_pb2.Decision.REASON_LOW_CONFIDENCE,
    )


async def test_an_engine_without_margins_cannot_be_calibrated(town: Any) -> None:
    settings, _ = await open_engines(town, logprobs=False)
    out = town.directory / "measured"
    engine_without = FakeEngine(teacher, model=MODEL)
    pools = json.loads(settings.pools)
    pools[0]["urls"] = [await start(town, engine_without)]
    settings = RouterSettings(pools=json.dumps(pools), llm_patience_s=5.0)
    with pytest.raises(FailedPrecondition, match="two candidates"):
        await calibrate(settings, find_workload("snips"), ROWS, out, 8)
    assert not out.exists()


async def test_a_model_without_a_versions_name_is_refused(town: Any) -> None:
    small = FakeEngine(student, model="small")
    slm = external("slm", await start(town, small), model="small", logprobs=True)
    llm = external("llm", await start(town, FakeEngine(teacher)))
    settings = RouterSettings(pools=json.dumps([slm, llm]), llm_patience_s=5.0)
    with pytest.raises(InvalidArgument, match="eight hexadecimal digits"):
        await calibrate(settings, find_workload("snips"), ROWS, town.directory / "measured", 8)


async def test_nothing_is_calibrated_without_an_slm(town: Any, tmp_path: Path) -> None:
    llm = external("llm", await start(town, FakeEngine(lambda _: spoken("Hello."))))
    settings = RouterSettings(pools=json.dumps([llm]))
    with pytest.raises(InvalidArgument, match="no slm"):
        await calibrate(settings, find_workload("snips"), [Row("x", WRONG)], tmp_path, 1)


@pytest.mark.parametrize("pools", ["[]", "[{}]"])
def test_bad_arguments_end_with_a_sentence(
    pools: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--pools", pools, "--out", str(tmp_path)]) == 1
    assert "UNDERSTUDY_ROUTER_POOLS" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_rows_that_cannot_be_read_end_with_a_sentence(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    if content is not None:
        rows.write_bytes(content)
    pools = json.dumps([external(name, "http://127.0.0.1:9/v1") for name in ("slm", "llm")])
    arguments = ["--pools", pools, "--rows", str(rows), "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert f"The rows in {rows} cannot be read" in capsys.readouterr().err
