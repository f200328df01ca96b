"""Building, the look-up of what is built, and a machine on which nothing can be built."""

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from understudy.errors import FailedPrecondition
from understudy_kernels import load
from understudy_kernels.compiling import build, library_path
from understudy_kernels.fakes import FAKES
from understudy_kernels.reference import REFERENCE
from understudy_kernels.schemas import SCHEMAS

ROOT = Path(__file__).parents[2]
FALLBACK = """
import logging
import torch
logging.basicConfig(format="%(levelname)s %(message)s")
from understudy_kernels import load
from understudy_kernels.packing import quantise_int8
from understudy_kernels import ops
loaded = load()
load()
weight = quantise_int8(torch.eye(32))
print(loaded.isa, float(ops.linear(torch.ones(1, 32), weight).sum()))
"""


OLD_PROCESSOR = """
import logging
logging.basicConfig(format="%(levelname)s %(message)s")
from understudy.model.decoder import resolve_compute
print(resolve_compute("exact"), resolve_compute("fast"), resolve_compute("reference"))
"""


def run_python(
    code: str, cache: Path, path: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    # No PATH: no compiler is found.
    environ = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "XDG_CACHE_HOME": str(cache)}
    environ |= {"PATH": path, **more}
    return subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )


def test_without_a_compiler_the_reference_serves_and_one_line_says_why(tmp_path: Path) -> None:
    done = run_python(FALLBACK, tmp_path)
    kind, total = done.stdout.split()
    assert kind == "reference"
    assert abs(float(total) - 32.0) < 0.1
    lines = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert len(lines) == 1
    assert "No compiler g++ is installed" in lines[0]
    assert "python -m understudy_kernels.build" in lines[0]


@pytest.mark.parametrize("path", ["", os.environ["PATH"]], ids=["no compiler", "a compiler"])
def test_on_a_processor_with_neither_instruction_set_the_reference_serves_and_one_line_says_why(
    path: str, tmp_path: Path
) -> None:
    done = run_python(OLD_PROCESSOR, tmp_path, path, ATEN_CPU_CAPABILITY="default")
    assert done.stdout.split() == ["reference"] * 3
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert "this processor offers DEFAULT, the kernels need AVX2 or AVX-512" in line
    assert list(tmp_path.iterdir()) == []  # nothing was compiled


def test_importing_the_package_registers_and_compiles_nothing(tmp_path: Path) -> None:
    code = (
        "import understudy_kernels.ops, understudy_kernels.packing, torch;"
        "print(hasattr(torch.ops.understudy, 'swiglu'))"
    )
    assert run_python(code, tmp_path).stdout.strip() == "False"
    assert list(tmp_path.iterdir()) == []


def test_loading_again_returns_the_same_and_building_again_compiles_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert load() is load()
    if load().isa == "reference":
        pytest.skip("nothing can be compiled here")
    with caplog.at_level(logging.INFO):
        assert build() == library_path()
    assert caplog.records == []


def test_builders_at_the_same_time_compile_once(tmp_path: Path) -> None:
    compiler, calls = tmp_path / "compiler", tmp_path / "calls"
    body = f'echo "$*" >> {calls}; while [ "$1" != -o ]; do shift; done; echo object > "$2"'
    compiler.write_text(f"#!/bin/sh\n{body}\n")
    compiler.chmod(0o755)
    target = tmp_path / "cache" / "library.so"
    with ThreadPoolExecutor(3) as pool:
        built = [pool.submit(build, target, str(compiler)) for _ in range(3)]
        assert {each.result() for each in built} == {target}
    assert target.exists()
    outputs = [line.rpartition("-o ")[2].split()[0] for line in calls.read_text().splitlines()]
    assert len(outputs) == len(set(outputs))


def test_a_compiler_that_refuses_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"build failed while compiling \w+\.cpp"):
        build(tmp_path / "library.so", compiler="false")


def test_every_operator_has_a_reference_and_a_fake() -> None:
    assert set(SCHEMAS) == set(FAKES) == set(REFERENCE)
    for name in SCHEMAS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"understudy::{name}", "CPU")


def test_operators_are_exported_with_a_free_number_of_rows() -> None:
    from understudy_kernels.packing import quantise_int8

    weight = quantise_int8(torch.randn(48, 64, generator=torch.Generator().manual_seed(0)))

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.packed = torch.nn.Buffer(weight.data)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            operator = torch.ops.understudy.quantised_linear.default
            return operator(hidden, self.packed, weight.format, 48, None, None, False)

    rows = torch.export.Dim("rows", min=1, max=64)
    program = torch.export.export(Layer(), (torch.ones(4, 64),), dynamic_shapes=({0: rows},))
    hidden = torch.ones(9, 64)
    assert torch.equal(program.module()(hidden), Layer()(hidden))
