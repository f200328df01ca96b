"""The GPU kernels: through Triton's interpreter everywhere, on the device where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels.builders import ALL_FORMATS, normal, weight
from understudy_kernels import Format, PackedLinear, ops

ROOT = Path(__file__).parents[2]


def test_every_gpu_kernel_equals_its_reference_when_interpreted() -> None:
    pytest.importorskip("triton", reason="this build of torch comes without Triton")
    path = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    environ = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "tests.kernels.interpreted"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.stdout.endswith("equal\n"), done.stderr[-2000:]


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
