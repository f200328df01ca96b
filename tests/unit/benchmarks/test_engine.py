"""What `benchmarks.engine` can be asked for, and how its tables say it."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from benchmarks import engine
from benchmarks.engine_memory import Memory, memory_table, wait_for_port
from benchmarks.engine_scenarios import scenarios
from benchmarks.measure import Bounds, timing
from understudy.errors import Unavailable
from understudy.local.processes import Child

LIMITS = Bounds(copy_bytes_per_s=10e9, read_bytes_per_s=20e9, float_macs_per_s=50e9)
FACTS = {
    "weight_bytes": 1e8, "kv_bytes_per_token": 4e4, "layer_macs": 1e8, "head_macs": 3e7,
    "attention_macs": 1e4,
}  # fmt: skip


def result(**seconds: float) -> engine.Result:
    timings = {name.replace("_", " "): timing([value]) for name, value in seconds.items()}
    least = {name: 0.5 for name in engine.OURS if name in timings}
    return engine.Result("decode", 32, timings, least)


def test_contestants_are_started_in_a_fixed_order_whatever_the_order_asked_for():
    wanted = engine.read_contestants("transformers float32, exact,exact")
    assert wanted == ("transformers float32", "exact")
    assert list(engine.commands(wanted, 2, 256, "python")) == ["exact", "transformers float32"]


def test_an_unknown_contestant_is_refused_by_name(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        engine.main(["--contestants", "exact,vllm"])
    assert ended.value.code == 2
    assert "'vllm' is nobody; there are exact, fast" in capsys.readouterr().err


def test_a_scenario_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        engine.main(["--only", "4 sequences"])
    assert "no scenario's name contains '4 sequences'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["engine", "kernels"])
def test_a_gpu_that_is_not_there_is_refused_in_a_sentence(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="There is no GPU that this torch"):
        import_module(f"benchmarks.{name}").main(["--device", "cuda"])


def test_rounds_are_as_given_and_fewer_when_quick():
    assert engine.read_arguments([]).rounds == engine.ROUNDS
    assert engine.read_arguments(["--quick"]).rounds == engine.QUICK_ROUNDS
    assert engine.read_arguments(["--quick", "--rounds", "9"]).rounds == 9


def test_the_table_has_ratios_only_where_there_are_peers_and_we():
    both = engine.table([result(exact=2.0, transformers_float32=4.0, llama_cpp=3.0)])
    assert "exact / best peer" in both
    assert both.endswith("| 1.50 | 25% |")
    alone = engine.table([result(exact=2.0, fast=1.0)])
    assert "best peer" not in alone
    assert alone.endswith("| 25% | 50% |")
    assert "bound" not in engine.table([result(llama_cpp=3.0)])


def test_bounds_are_bytes_over_bandwidth_for_decode_and_products_over_peak_for_prompts():
    by_name = {each.name: each for each in scenarios(is_quick=True)}
    decode = by_name["decode, 8 sequences of 512 tokens"]
    wanted = 16 * (1e8 + 8 * (512 + 64) * 4e4) / 10e9
    assert decode.least_s(FACTS, LIMITS, 1.0) == pytest.approx(wanted)
    wanted = (512 * 1e8 / 2 + 512**2 / 2 * 1e4 + 3e7 / 2) / 50e9
    assert by_name["prompt of 512 tokens"].least_s(FACTS, LIMITS, 2.0) == pytest.approx(wanted)


def test_memory_is_held_against_the_allowance_at_every_moment():
    memory = Memory(300.0, 310.0, 350.0, bare_mib=200.0, file_mib=100.0, kv_mib=20.0)
    table = memory_table(memory)
    assert "1.3 x the file + KV is 150 MiB" in table
    assert "| ready | 100.0 | 67% |" in table
    assert table.endswith("| after a request with a grammar | 150.0 | 100% |")


def test_a_worker_that_ends_before_it_is_ready_is_quoted(tmp_path: Path):
    command = (sys.executable, "-c", "raise SystemExit('no such model')")
    child = Child(command, {}, tmp_path / "log")
    try:
        with pytest.raises(Unavailable, match=r"ended with 1; the last it said:\nno such model"):
            wait_for_port(child, tmp_path / "ready")
    finally:
        child.kill()


def test_a_worker_that_never_gets_ready_is_given_up(tmp_path: Path):
    command = (sys.executable, "-c", "import signal; signal.pause()")
    child = Child(command, {}, tmp_path / "log")
    try:
        with pytest.raises(Unavailable, match="was not ready after 0 s"):
            wait_for_port(child, tmp_path / "ready", timeout_s=0.0)
    finally:
        child.kill()
