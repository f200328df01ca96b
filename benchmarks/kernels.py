"""Kernels against torch: `python -m benchmarks.kernels [--quick] [--json FILE] [--threads N]`.

Shapes are those of SmolLM2-135M, those of experts and latents of a mixture of its size and of
DeepSeek-V2-Lite. Weights of single-row calls lie behind one another in more memory
than the caches hold, as a model's do; peers get the same treatment.
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernel_inputs import (
    DIM,
    FFN,
    HEADS,
    LAYERS,
    NUM_KV,
    SIZE,
    VOCAB,
    model,
    random_weight,
    shapes,
    step,
)
from benchmarks.kernel_mixtures import mixtures
from benchmarks.measure import (
    Bounds,
    Figure,
    bounds,
    figure,
    header,
    interleaved,
    machine,
    table,
    write_json,
)
from understudy_kernels import (
    CacheView,
    Format,
    PackedLinear,
    Rows,
    load,
    ops,
)
from understudy_kernels.formats import packed_bytes

COLD_BYTES: Final = 96 << 20


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write the figures where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and shapes")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--threads", type=int, default=0, help="torch's threads (default: its own)")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    num_rounds = 5 if given.quick else 15
    where = machine(load().isa)
    torch.manual_seed(0)
    with torch.inference_mode():
        limits = bounds(num_rounds)
        print(header(where, limits) + "\n")
        figures = [
            *linears(
                limits, num_rounds, (1, 128) if given.quick else (1, 2, 8, 16, 128, 512, 2048)
            ),
            *formats(limits, num_rounds),
            *parts(num_rounds),
            *whole_model(limits, num_rounds, (1, 8, 512)),
        ]
    print(table(figures))
    if given.json:
        write_json(given.json, where, limits, figures)


def linears(limits: Bounds, num_rounds: int, row_counts: Sequence[int]) -> list[Figure]:
    """Measure the gate matrix in Q4_1 over row counts against torch's float32 and bfloat16."""
    figures = []
    for num_rows in row_counts:
        hidden = torch.randn(num_rows, SIZE)
        # One matrix for prompts; for a few rows as many as the caches cannot hold.
        num_copies = 1 if num_rows > 16 else COLD_BYTES // packed_bytes(Format.Q4_1, FFN, SIZE)
        packed = [random_weight(Format.Q4_1, FFN, SIZE)]
        packed += [
            PackedLinear(packed[0].data.clone(), Format.Q4_1, FFN, SIZE)
            for _ in range(num_copies - 1)
        ]
        plain = torch.randn(min(num_copies, COLD_BYTES // (4 * FFN * SIZE)) or 1, FFN, SIZE)
        brain, brain_hidden = plain.bfloat16(), hidden.bfloat16()
        timings = interleaved(
            {
                "fast": _over(packed, lambda weight, rows=hidden: ops.linear(rows, weight)),
                "exact": _over(
                    packed, lambda weight, rows=hidden: ops.linear(rows, weight, exact=True)
                ),
                "torch float32": _over(
                    list(plain), lambda weight, rows=hidden: functional.linear(rows, weight)
                ),
                "torch bfloat16": _over(
                    list(brain), lambda weight, rows=brain_hidden: functional.linear(rows, weight)
                ),
            },
            num_rounds,
        )
        if num_rows <= 16:
            rate = packed[0].data.numel() / timings["fast"].median_s
            share, bound = rate / limits.read_bytes_per_s, "read bandwidth"
        else:
            rate = num_rows * SIZE * FFN / timings["fast"].median_s
            share, bound = rate / limits.float_macs_per_s, "torch's float32 peak"
        peers = {name: timing for name, timing in timings.items() if name != "exact"}
        figures.append(figure(f"linear Q4_1 {num_rows} rows, fast", peers, "fast", share, bound))
        exact = {name: timing for name, timing in timings.items() if name != "fast"}
        figures.append(figure(f"linear Q4_1 {num_rows} rows, exact", exact, "exact"))
    return figures


def formats(limits: Bounds, num_rounds: int) -> list[Figure]:
    """Measure one row of the LM head in every kind of format."""
    hidden, size = torch.randn(1, 768), 16_384
    plain = torch.randn(size, 768)
    figures = []
    for kind in (Format.Q8_0, Format.Q4_1, Format.Q4_K, Format.Q6_K, Format.BF16):
        # Larger than the caches on its own.
        packed = random_weight(kind, 4 * size, 768)
        timings = interleaved(
            {
                "ours": partial(ops.linear, hidden, packed),
                "torch float32 x 4": lambda: [functional.linear(hidden, plain) for _ in range(4)],
            },
            num_rounds,
        )
        share = packed.data.numel() / timings["ours"].median_s / limits.read_bytes_per_s
        name = f"linear {kind.name} 1 row, {4 * size} x 768"
        figures.append(figure(name, timings, "ours", share, "read bandwidth"))
    return figures


def parts(num_rounds: int) -> list[Figure]:
    """Measure experts, attention and sampling against the same in torch operators."""
    return [
        *mixtures(num_rounds),
        *(_attention(num_rounds, dtype) for dtype in (torch.float32, torch.bfloat16)),
        *_sampling(num_rounds),
    ]


def whole_model(limits: Bounds, num_rounds: int, row_counts: Sequence[int]) -> list[Figure]:
    """Measure all layers and the head of a SmolLM2-135M in Q4_1 against float32 products alone."""
    layers, head = model()
    storage = torch.zeros((160, LAYERS, 2, 16, NUM_KV, DIM))
    plain = [torch.randn(out, inner) for out, inner in shapes()]
    num_bytes = (
        sum(each.numel() for each in layers.weights if each.dtype == torch.uint8)
        + head.data.numel()
    )
    figures = []
    for num_rows in row_counts:
        one_step = step(layers, head, storage, num_rows)
        inputs = [torch.randn(num_rows, weight.shape[1]) for weight in plain]
        timings = interleaved(
            {
                "ours": one_step,
                "torch float32, products only": partial(_products, inputs, plain),
            },
            max(3, num_rounds // 2),
        )
        kind = "prompt of 512" if num_rows == 512 else f"decode of {num_rows}, 512 cached"
        share = num_bytes / timings["ours"].median_s / limits.read_bytes_per_s
        is_decode = num_rows != 512
        figures.append(
            figure(
                f"SmolLM2 shape Q4_1, {kind}",
                timings,
                "ours",
                share if is_decode else None,
                "read bandwidth" if is_decode else "",
            )
        )
    return figures


def _products(inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    for _ in range(LAYERS):
        for rows, weight in zip(inputs, weights, strict=True):
            functional.linear(rows, weight)


def _over(weights: Sequence[object], call: Callable[..., object]) -> Callable[[], object]:
    turn = itertools.cycle(weights)
    return lambda: call(next(turn))


def _attention(num_rounds: int, dtype: torch.dtype) -> Figure:
    length, num_rows = 2048, 8
    storage = torch.randn(num_rows * length // 16, 2, 16, NUM_KV, DIM).to(dtype)
    cache = CacheView(storage[:, 0], storage[:, 1])
    tables = torch.randperm(storage.shape[0]).view(num_rows, -1).int()
    rows = Rows(
        tables,
        torch.arange(num_rows, dtype=torch.int32),
        torch.full((num_rows,), length, dtype=torch.int32),
    )
    query = torch.randn(num_rows, HEADS, DIM)
    grouped = query.view(num_rows, NUM_KV, -1, DIM)

    def peer() -> Tensor:
        flat = tables.flatten().long()
        keys, values = (
            storage[flat, which].view(num_rows, -1, NUM_KV, DIM).transpose(1, 2).float()
            for which in (0, 1)
        )
        return functional.scaled_dot_product_attention(grouped, keys, values)

    contestants = {
        "ours": lambda: ops.paged_attention(query, cache, rows, DIM**-0.5),
        "gather + SDPA": peer,
    }
    name = f"decode attention {str(dtype).removeprefix('torch.')}, 8 x {length}"
    return figure(name, interleaved(contestants, num_rounds), "ours")


def _sampling(num_rounds: int) -> list[Figure]:
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
        reference = _reference_sampling(logits, params)
        timings = interleaved(
            {
                "ours": partial(ops.sample_tokens, logits, None, *params),
                "torch": reference,
            },
            num_rounds,
        )
        figures.append(figure(f"sampling 8 x {VOCAB}, {name}", timings, "ours"))
    return figures


def _reference_sampling(logits: Tensor, params: tuple[Tensor, ...]) -> Callable[[], object]:
    from understudy_kernels.reference.sampling import sample_tokens

    return lambda: sample_tokens(logits, None, *params)


if __name__ == "__main__":
    main()
