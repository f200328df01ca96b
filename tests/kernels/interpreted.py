"""The GPU kernels on the CPU, through Triton's interpreter: run as a program by test_gpu.py."""

import sys

import torch

from tests.kernels.builders import ALL_FORMATS, ffn, normal, weight
from understudy_kernels import Format, gpu
from understudy_kernels.packing import stack_experts
from understudy_kernels.reference import REFERENCE


def compare(name: str, *arguments: object) -> None:
    found, wanted = gpu.GPU[name](*arguments), REFERENCE[name](*arguments)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def compare_latents(rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    # Twenty heads fill one run of heads and begin another.
    up = weight(Format.BF16, 20 * (16 + 32), 24).packed
    query, packed = normal((2, 20, 16 + 6), 5), (up.data, int(up.format), 32)
    latents, keys = normal((6, 16, 1, 24), 6), normal((6, 16, 1, 6), 7)
    compare("latent_attention", query, *packed, keys, latents, None, None, *rows, 0.2)
    empty = (rows[0], rows[1][:0], rows[2][:0])
    compare("latent_attention", query[:0], *packed, keys, latents, None, None, *empty, 0.2)
    small = [(part * 40).to(torch.int8) for part in (keys, latents)]
    scales = torch.rand((2, 6, 16, 1)) * 0.02
    compare("latent_attention", query, *packed, *small, *scales, *rows, 0.2)


def main() -> int:
    for kind in ALL_FORMATS:
        made = weight(kind, 70, 256).packed
        arguments = (normal((3, 256), 1), made.data, int(kind), 70, normal((70,), 2), None, True)
        compare("quantised_linear", *arguments)
    compare("add_rms_norm", normal((3, 40), 1), normal((3, 40), 2), normal((40,), 3), 1e-5)
    matrices = [weight(kind, 20, 256, kind).packed for kind in (Format.Q4_K, Format.BF16)]
    data, kinds = [each.data for each in matrices], [int(each.format) for each in matrices]
    compare(
        "normed_linears",
        normal((2, 256), 1),
        normal((256,), 2),
        1e-5,
        data,
        kinds,
        [20, 20],
        None,
        True,
    )
    packed = ffn(Format.Q4_1, 32, 64)
    parts = (packed.gate.data, packed.up.data, packed.down.data, packed.formats, 64, True)
    compare("swiglu", normal((5, 32), 1), *parts)
    compare("normed_swiglu", normal((5, 32), 1), normal((32,), 2), 1e-5, *parts)
    stack = stack_experts([ffn(Format.Q4_1, 32, 64, 10 * index) for index in range(3)])
    gates, ids = normal((20, 6), 3).softmax(-1).topk(2, dim=-1)
    gates[::3, 1] = 0.0
    experts = (stack.gate, stack.up, stack.down, list(stack.formats), 64, 1, True)
    compare("swiglu_experts", normal((20, 32), 1), ids, gates, *experts)
    compare("swiglu_experts", normal((0, 32), 1), ids[:0], gates[:0], *experts)
    tables = torch.tensor([[3, 1, 0], [2, 4, 5]], dtype=torch.int32)
    rows = (
        tables,
        torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([35, 2], dtype=torch.int32),
    )
    storage = normal((6, 2, 16, 2, 24), 4)
    compare(
        "paged_attention",
        normal((2, 6, 24), 5),
        storage[:, 0],
        storage[:, 1],
        None,
        None,
        *rows,
        0.2,
    )
    small = torch.randint(-127, 128, (6, 2, 16, 2, 24), dtype=torch.int8)
    scales = torch.rand(6, 2, 16, 2) * 0.02
    cache = (small[:, 0], small[:, 1], scales[:, 0], scales[:, 1])
    compare("paged_attention", normal((2, 6, 24), 5), *cache, *rows, 0.2)
    compare_latents(rows)
    sys.stdout.write("equal\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
