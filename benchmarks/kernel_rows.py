"""Attention, norms and sampling for `benchmarks.kernels`, against torch's operators."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernel_inputs import DIM, HEADS, NUM_KV, SIZE, VOCAB
from benchmarks.kernel_mixtures import mixtures
from benchmarks.kernel_setup import Setup
from benchmarks.measure import Figure, figure
from understudy_kernels import CacheView, Rows, ops
from understudy_kernels.reference.sampling import sample_tokens

EPS = 1e-5
INT8_LIMIT = 127.0


def parts(setup: Setup) -> list[Figure]:
    """Measure all of them."""
    dtypes = (torch.float32, torch.bfloat16, torch.int8)
    return [
        *mixtures(setup),
        *(_attention(setup, dtype) for dtype in dtypes),
        *(_norm(setup, num_rows) for num_rows in (1, 512)),
        *_sampling(setup),
    ]


def _attention(setup: Setup, dtype: torch.dtype) -> Figure:
    length, num_rows = 2048, 8
    storage = torch.randn(num_rows * length // 16, 2, 16, NUM_KV, DIM)
    scales = None
    if dtype == torch.int8:
        scales = storage.abs().amax(dim=-1) / INT8_LIMIT
        storage = storage / scales.unsqueeze(-1)
    storage = storage.to(dtype)
    of_keys, of_values = (None, None) if scales is None else scales.unbind(1)
    cache = CacheView(storage[:, 0], storage[:, 1], of_keys, of_values)
    tables = torch.randperm(storage.shape[0]).view(num_rows, -1).int()
    rows = Rows(
        tables,
        torch.arange(num_rows, dtype=torch.int32),
        torch.full((num_rows,), length, dtype=torch.int32),
    )
    query = torch.randn(num_rows, HEADS, DIM)
    grouped = query.view(num_rows, NUM_KV, -1, DIM)
    flat = tables.flatten().long()

    def gathered(which: int) -> Tensor:
        found = storage[flat, which].float()
        if scales is not None:
            found = found * scales[flat, which].unsqueeze(-1)
        return found.view(num_rows, -1, NUM_KV, DIM).transpose(1, 2)

    timings = setup.time(
        {
            "ours": lambda: ops.paged_attention(query, cache, rows, DIM**-0.5),
            "gather + SDPA": lambda: functional.scaled_dot_product_attention(
                grouped, gathered(0), gathered(1)
            ),
        }
    )
    num_bytes = storage.nbytes + (0 if scales is None else scales.nbytes)
    bound = setup.of_read(num_bytes, timings["ours"].median_s)
    name = f"decode attention {str(dtype).removeprefix('torch.')}, 8 x {length}"
    return figure(name, timings, "ours", *bound)


def _norm(setup: Setup, num_rows: int) -> Figure:
    hidden, residual = torch.randn(num_rows, SIZE), torch.randn(num_rows, SIZE)
    weight = torch.randn(SIZE)

    def peer() -> tuple[Tensor, Tensor]:
        total = hidden + residual
        return functional.rms_norm(total, (SIZE,), weight, EPS), total

    timings = setup.time(
        {"ours": lambda: ops.add_rms_norm(hidden, residual, weight, EPS), "torch": peer}
    )
    # Two tensors are read, two are written.
    bound = setup.of_copy(2 * hidden.nbytes, timings["ours"].median_s)
    return figure(f"RMSNorm + residual, {num_rows} x {SIZE}", timings, "ours", *bound)


def _sampling(setup: Setup) -> list[Figure]:
    logits = torch.randn(8, VOCAB) * 3
    uniforms = torch.rand(8, dtype=torch.float64)
    ones = torch.ones(8, dtype=torch.float64)
    figures = []
    for name, temperature, top_k, top_p in (
        ("greedy", 0.0, 0, 1.0),
        ("top-p 0.95", 0.8, 0, 0.95),
        ("top-k 50", 0.8, 50, 1.0),
    ):
        params = (ones * temperature, torch.full((8,), top_k), ones * top_p, uniforms)
        timings = setup.time(
            {
                "ours": partial(ops.sample_tokens, logits, None, *params),
                "torch": partial(sample_tokens, logits, None, *params),
            }
        )
        bound = setup.of_read(logits.nbytes, timings["ours"].median_s)
        figures.append(figure(f"sampling 8 x {VOCAB}, {name}", timings, "ours", *bound))
    return figures
