"""The GPU kernels: through Triton's interpreter everywhere, on the device where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels.builders import ALL_FORMATS, normal, weight
from understudy_kernels import Format, LatentView, PackedHeads, PackedLinear, Rows, ops
from understudy_kernels.packing import pack_heads

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


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latent_attention_on_the_device_equals_the_processors(dtype: torch.dtype) -> None:
    heads = pack_heads(weight(Format.BF16, 20 * (16 + 32), 96).packed, 20, 16, 32)
    cache = LatentView(normal((8, 16, 1, 8), 1).to(dtype), normal((8, 16, 1, 96), 2).to(dtype))
    rows = Rows(
        torch.arange(8, dtype=torch.int32).view(2, 4),
        torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([50, 3], dtype=torch.int32),
    )
    query = normal((2, 20, 24), 3)
    up = PackedLinear(heads.up.data.cuda(), Format.BF16, heads.up.num_out, 96)
    found = ops.latent_attention(
        query.cuda(),
        PackedHeads(up, 32),
        LatentView(cache.rope_keys.cuda(), cache.latents.cuda()),
        Rows(rows.tables.cuda(), rows.sequences.cuda(), rows.lengths.cuda()),
        0.2,
    ).cpu()
    wanted = ops.latent_attention(query, heads, cache, rows, 0.2)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
