"""The GPU kernels: interpreted and compiled everywhere, run on the device where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.kernels.builders import ALL_FORMATS, normal, weight
from tests.kernels.gpu_cases import Case, cases
from understudy_kernels import Format, PackedLinear, ops
from understudy_kernels.loading import _register_gpu
from understudy_kernels.reference import REFERENCE

ROOT = Path(__file__).parents[2]
KERNELS = (
    "_attention_kernel", "_embedding_kernel", "_linear_kernel", "_norm_kernel", "_rotation_kernel",
    "_sampling_kernel", "_silu_kernel",
)  # fmt: skip
CASES = list(cases())


def _run(program: str, *arguments: str, **environ: str) -> str:
    pytest.importorskip("triton", reason="this build of torch comes without Triton")
    path = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    done = subprocess.run(
        [sys.executable, "-m", f"tests.kernels.{program}", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **environ},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_every_gpu_kernel_equals_its_reference_when_interpreted() -> None:
    assert _run("interpreted", TRITON_INTERPRET="1").endswith("equal\n")


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "start"), [("80", "0"), ("90", "1")])
def test_every_gpu_kernel_becomes_machine_code(capability: str, start: str, tmp_path: Path) -> None:
    found = _run("compiled_for_gpu", capability, start, TRITON_CACHE_DIR=str(tmp_path))
    assert set(KERNELS) <= set(found.split())


def test_every_operator_has_cases() -> None:
    pytest.importorskip("triton", reason="this build of torch comes without Triton")
    from understudy_kernels.gpu import GPU

    assert {name for name, _ in CASES} == set(GPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="load() has registered them")
def test_every_operator_is_registered_for_a_gpu() -> None:
    pytest.importorskip("triton", reason="this build of torch comes without Triton")
    library = _register_gpu()
    for name in REFERENCE:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"understudy::{name}", "CUDA")
    del library


@pytest.mark.gpu
@pytest.mark.parametrize(
    "case", CASES, ids=[f"{place}-{name}" for place, (name, _) in enumerate(CASES)]
)
def test_every_operator_on_the_device_equals_its_reference(case: Case) -> None:
    name, arguments = case
    there = [_moved(each) for each in arguments]
    found = getattr(torch.ops.understudy, name).default(*there)
    wanted = REFERENCE[name](*arguments)
    for ours, theirs in zip(_tuple(found), _tuple(wanted), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(there, arguments, strict=True):
        if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
            # A rounding that falls to the other side moves an int8 by one.
            step = 1.0 if ours.dtype == torch.int8 else 1e-3
            torch.testing.assert_close(ours.cpu().float(), theirs.float(), rtol=1e-2, atol=step)


def _moved(argument: object) -> object:
    if isinstance(argument, list):
        return [_moved(each) for each in argument]
    if not isinstance(argument, Tensor):
        return argument
    there = torch.empty_strided(
        argument.shape, argument.stride(), dtype=argument.dtype, device="cuda"
    )
    return there.copy_(argument)


def _tuple(result: object) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ALL_FORMATS)
@pytest.mark.parametrize("num_rows", [0, 1, 7, 130])
def test_linear_on_the_device_equals_the_processors(kind: Format, num_rows: int) -> None:
    made = weight(kind, 210, 512)
    hidden = normal((num_rows, 512), 1)
    there = PackedLinear(made.packed.data.cuda(), kind, 210, 512)
    found = ops.linear(hidden.cuda(), there, exact=True).cpu()
    torch.testing.assert_close(
        found, ops.linear(hidden, made.packed, exact=True), rtol=1e-3, atol=1e-4
    )
