"""Kernels against torch: `python -m benchmarks.kernels [--quick] [--device cuda] [--json FILE]`.

Shapes are those of SmolLM2-135M, and those of experts and latents of a mixture of its size and of
DeepSeek-V2-Lite. Weights of single-row calls lie behind one another in more memory
than the caches hold, as a model's do; peers get the same treatment. Every row says which share it
reaches of what the device can do: the bytes it must touch over the bandwidth, or its products over
the peak of torch's float32.
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernel_inputs import (
    DIM,
    FFN,
    LAYERS,
    NUM_KV,
    SIZE,
    model,
    quantised_here,
    random_weight,
    shapes,
    step,
)
from benchmarks.kernel_rows import parts
from benchmarks.kernel_setup import Setup
from benchmarks.measure import (
    CPU,
    DEVICES,
    Figure,
    bounds,
    figure,
    header,
    machine,
    require_device,
    table,
    write_json,
)
from understudy_kernels import Format, PackedLinear, load, ops
from understudy_kernels.formats import packed_bytes

Weight = TypeVar("Weight")

COLD_BYTES: Final = 96 << 20
MOST_COLD_ROWS: Final = 16
"""Up to here weights bound a product; beyond it arithmetic does."""
ROUNDS: Final = 15
QUICK_ROUNDS: Final = 5
FORMATS: Final = (
    Format.Q8_0, Format.Q4_0, Format.Q4_1, Format.Q4_K, Format.Q6_K, Format.BF16,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write the figures where a file is named."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer rounds and shapes")
    add("--rounds", type=int, help=f"rounds that count ({ROUNDS}; {QUICK_ROUNDS} with --quick)")
    add("--device", choices=DEVICES, default=CPU, help="cuda measures the kernels of a GPU")
    add("--threads", type=int, default=0, help="torch's threads (default: its own)")
    add("--json", type=Path, help="write every figure to this file")
    given = parser.parse_args(arguments)
    require_device(given.device)
    if given.threads:
        torch.set_num_threads(given.threads)
    num_rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS)
    where = machine(load().isa, given.device)
    torch.manual_seed(0)
    with torch.inference_mode(), torch.device(given.device):
        setup = Setup(bounds(num_rounds, given.device), num_rounds, given.device)
        print(f"{header(where, setup.limits)}\n{num_rounds} rounds\n")
        row_counts = (1, 128) if given.quick else (1, 2, 8, 16, 128, 512, 2048)
        figures = [
            *(each for num_rows in row_counts for each in linears(setup, num_rows)),
            *formats(setup),
            *parts(setup),
            *whole_model(setup, (1, 8, 512)),
        ]
    print(table(figures))
    if given.json:
        write_json(given.json, where, setup.limits, figures)


def linears(setup: Setup, num_rows: int) -> list[Figure]:
    """Measure the gate matrix in Q4_1 over some rows against torch's float32 and bfloat16."""
    hidden = torch.randn(num_rows, SIZE)
    is_cold = num_rows <= MOST_COLD_ROWS
    # One matrix for prompts; for a few rows as many as the caches cannot hold.
    num_copies = COLD_BYTES // packed_bytes(Format.Q4_1, FFN, SIZE) if is_cold else 1
    packed = [random_weight(Format.Q4_1, FFN, SIZE)]
    packed += [
        PackedLinear(packed[0].data.clone(), Format.Q4_1, FFN, SIZE) for _ in range(num_copies - 1)
    ]
    plain = torch.randn(min(num_copies, COLD_BYTES // (4 * FFN * SIZE)) or 1, FFN, SIZE)
    brain, brain_hidden = plain.bfloat16(), hidden.bfloat16()
    timings = setup.time(
        {
            "fast": _over(packed, lambda weight: ops.linear(hidden, weight)),
            "exact": _over(packed, lambda weight: ops.linear(hidden, weight, exact=True)),
            "torch float32": _over(list(plain), lambda weight: functional.linear(hidden, weight)),
            "torch bfloat16": _over(
                list(brain), lambda weight: functional.linear(brain_hidden, weight)
            ),
        }
    )
    figures = []
    for name, other in (("fast", "exact"), ("exact", "fast")):
        seconds = timings[name].median_s
        if is_cold:
            bound = setup.of_read(packed[0].data.numel(), seconds)
        else:
            bound = setup.of_peak(num_rows * SIZE * FFN, seconds)
        both = {key: timing for key, timing in timings.items() if key != other}
        figures.append(figure(f"linear Q4_1 {num_rows} rows, {name}", both, name, *bound))
    return figures


def formats(setup: Setup) -> list[Figure]:
    """Measure one row of the LM head in every kind of format, the file's and our own."""
    hidden, size = torch.randn(1, 768), 16_384
    plain = torch.randn(size, 768)
    # Larger than the caches on its own.
    weights = {kind.name: random_weight(kind, 4 * size, 768) for kind in FORMATS}
    weights |= quantised_here(plain.repeat(4, 1))
    figures = []
    for kind, packed in weights.items():
        timings = setup.time(
            {
                "ours": partial(ops.linear, hidden, packed),
                "torch float32 x 4": lambda: [functional.linear(hidden, plain) for _ in range(4)],
            }
        )
        bound = setup.of_read(packed.data.numel(), timings["ours"].median_s)
        figures.append(figure(f"linear {kind} 1 row, {4 * size} x 768", timings, "ours", *bound))
    return figures


def whole_model(setup: Setup, row_counts: Sequence[int]) -> list[Figure]:
    """Measure all layers and the head of a SmolLM2-135M in Q4_1 against float32 products alone."""
    layers, head = model()
    storage = torch.zeros((160, LAYERS, 2, 16, NUM_KV, DIM))
    plain = [torch.randn(out, inner) for out, inner in shapes()]
    weight_bytes = head.data.numel()
    weight_bytes += sum(each.numel() for each in layers.weights if each.dtype == torch.uint8)
    layer_macs = LAYERS * sum(weight.numel() for weight in plain)
    figures = []
    for num_rows in row_counts:
        one_step = step(layers, head, storage, num_rows)
        inputs = [torch.randn(num_rows, weight.shape[1]) for weight in plain]
        timings = setup.time(
            {
                "ours": one_step,
                "torch float32, products only": partial(_products, inputs, plain),
            },
            max(3, setup.num_rounds // 2),
        )
        seconds = timings["ours"].median_s
        if num_rows == 512:
            kind, bound = "prompt of 512", setup.of_peak(num_rows * layer_macs, seconds)
        else:
            cached = num_rows * 512 * LAYERS * 2 * NUM_KV * DIM * storage.element_size()
            kind = f"decode of {num_rows}, 512 cached"
            bound = setup.of_read(weight_bytes + cached, seconds)
        figures.append(figure(f"SmolLM2 shape Q4_1, {kind}", timings, "ours", *bound))
    return figures


def _products(inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    for _ in range(LAYERS):
        for rows, weight in zip(inputs, weights, strict=True):
            functional.linear(rows, weight)


def _over(weights: Sequence[Weight], call: Callable[[Weight], object]) -> Callable[[], object]:
    turn = itertools.cycle(weights)
    return lambda: call(next(turn))


if __name__ == "__main__":
    main()
