"""Grouped experts and latent attention against the same in torch operators."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernel_inputs import random_weight
from benchmarks.kernel_setup import Setup
from benchmarks.measure import Figure, figure
from understudy_kernels import Format, LatentView, PackedFfn, Rows, ops
from understudy_kernels.formats import PackedExperts
from understudy_kernels.packing import pack_heads, stack_experts

SIZE, EXPERT_SIZE, NUM_EXPERTS, NUM_CHOSEN = 512, 768, 16, 2
HEADS, RANK, NOPE_DIM, ROPE_DIM, VALUE_DIM = 16, 512, 128, 64, 128
BLOCK_SIZE = 16


def mixtures(setup: Setup) -> list[Figure]:
    """Measure experts for a few and many rows, latents for decodes and a chunk of a prompt."""
    return [
        _experts(setup, Format.BF16, 32),
        *(_experts(setup, Format.Q4_1, num_rows) for num_rows in (1, 8, 256)),
        *(_latent(setup, 8, 2048, dtype) for dtype in (torch.float32, torch.bfloat16)),
        _latent(setup, 1, 2048, torch.float32),
        _latent_chunk(setup),
    ]


def _experts(setup: Setup, kind: Format, num_rows: int) -> Figure:
    shapes = ((EXPERT_SIZE, SIZE), (EXPERT_SIZE, SIZE), (SIZE, EXPERT_SIZE))
    held = [
        PackedFfn(*(random_weight(kind, out, inner) for out, inner in shapes))
        for _ in range(NUM_EXPERTS)
    ]
    experts, hidden = stack_experts(held), torch.randn(num_rows, SIZE)
    gates, ids = torch.rand(num_rows, NUM_EXPERTS).topk(NUM_CHOSEN, dim=-1)
    plain = [tuple(torch.randn(shape) for shape in shapes) for _ in held]

    def one_by_one(compute: Callable[[int, Tensor], Tensor]) -> Tensor:
        total = torch.zeros_like(hidden)
        for expert in range(NUM_EXPERTS):
            rows, choice = torch.where(ids == expert)
            if rows.numel():
                partial = compute(expert, hidden[rows])
                total.index_add_(0, rows, partial * gates[rows, choice].unsqueeze(-1))
        return total

    def in_torch(expert: int, rows: Tensor) -> Tensor:
        gate, up, down = plain[expert]
        inner = functional.silu(functional.linear(rows, gate)) * functional.linear(rows, up)
        return functional.linear(inner, down)

    def grouped(stack: PackedExperts) -> Tensor:
        return ops.swiglu_experts(hidden, ids, gates, stack)

    contestants = {
        "ours": lambda: grouped(experts),
        "the same, one expert a call": lambda: one_by_one(
            lambda expert, rows: ops.swiglu(rows, held[expert])
        ),
        "torch float32 loop": lambda: one_by_one(in_torch),
    }
    name = f"experts {kind.name}, {num_rows} tokens x {NUM_CHOSEN} of {NUM_EXPERTS}"
    timings = setup.time(contestants)
    num_used = ids.unique().numel()
    num_bytes = num_used * (experts.gate[0].nbytes + experts.up[0].nbytes + experts.down[0].nbytes)
    bound = setup.of_read(num_bytes, timings["ours"].median_s)
    return figure(name, timings, "ours", *bound)


def _cache(num_rows: int, length: int, dtype: torch.dtype) -> tuple[LatentView, Tensor]:
    num_blocks = num_rows * length // BLOCK_SIZE
    latents = torch.randn(num_blocks, BLOCK_SIZE, 1, RANK).to(dtype)
    keys = torch.randn(num_blocks, BLOCK_SIZE, 1, ROPE_DIM).to(dtype)
    return LatentView(keys, latents), torch.randperm(num_blocks).view(num_rows, -1).int()


def _up() -> Tensor:
    return torch.randn(HEADS * (NOPE_DIM + VALUE_DIM), RANK) * 0.05


def _latent(setup: Setup, num_rows: int, length: int, dtype: torch.dtype) -> Figure:
    cache, tables = _cache(num_rows, length, dtype)
    up = random_weight(Format.BF16, HEADS * (NOPE_DIM + VALUE_DIM), RANK)
    heads = pack_heads(up, HEADS, NOPE_DIM, VALUE_DIM)
    key_up, value_up = _up().view(HEADS, -1, RANK).split((NOPE_DIM, VALUE_DIM), dim=1)
    rows = Rows(
        tables,
        torch.arange(num_rows, dtype=torch.int32),
        torch.full((num_rows,), length, dtype=torch.int32),
    )
    query = torch.randn(num_rows, HEADS, NOPE_DIM + ROPE_DIM)

    def absorbed() -> Tensor:
        flat = tables.flatten().long()
        latents, keys = (
            part[flat].view(num_rows, 1, -1, part.shape[-1]).float()
            for part in (cache.latents, cache.rope_keys)
        )
        nope, rope = query.split((NOPE_DIM, ROPE_DIM), dim=2)
        over = torch.cat((torch.einsum("thn,hnr->thr", nope, key_up), rope), dim=2)
        seen = functional.scaled_dot_product_attention(
            over[:, None], torch.cat((latents, keys), dim=-1), latents, scale=0.1
        )
        return torch.einsum("thr,hvr->thv", seen[:, 0], value_up)

    contestants = {
        "ours": lambda: ops.latent_attention(query, heads, cache, rows, 0.1),
        "gather, absorb, SDPA": absorbed,
    }
    name = f"latent attention {str(dtype).removeprefix('torch.')}, {num_rows} x {length}"
    timings = setup.time(contestants)
    num_bytes = cache.latents.nbytes + cache.rope_keys.nbytes
    bound = setup.of_read(num_bytes, timings["ours"].median_s)
    return figure(name, timings, "ours", *bound)


def _latent_chunk(setup: Setup, num_rows: int = 128, length: int = 1024) -> Figure:
    """A chunk of a prompt: torch expands latents to keys and values once for all its rows."""
    cache, tables = _cache(1, length, torch.float32)
    up = random_weight(Format.BF16, HEADS * (NOPE_DIM + VALUE_DIM), RANK)
    heads, plain = pack_heads(up, HEADS, NOPE_DIM, VALUE_DIM), _up()
    lengths = torch.arange(length - num_rows + 1, length + 1, dtype=torch.int32)
    rows = Rows(tables, torch.zeros(num_rows, dtype=torch.int32), lengths)
    query = torch.randn(num_rows, HEADS, NOPE_DIM + ROPE_DIM)
    is_hidden = torch.arange(length) >= lengths[:, None]
    mask = torch.zeros(is_hidden.shape).masked_fill(is_hidden, -torch.inf)

    def expanded() -> Tensor:
        flat = tables[0].long()
        latents, keys = (part[flat].flatten(0, 2) for part in (cache.latents, cache.rope_keys))
        both = functional.linear(latents, plain).view(length, HEADS, -1)
        nope, values = both.split((NOPE_DIM, VALUE_DIM), dim=2)
        whole = torch.cat((nope, keys[:, None].expand(-1, HEADS, -1)), dim=2)
        return functional.scaled_dot_product_attention(
            query.transpose(0, 1),
            whole.transpose(0, 1),
            values.transpose(0, 1),
            attn_mask=mask,
            scale=0.1,
        )

    contestants = {
        "ours": lambda: ops.latent_attention(query, heads, cache, rows, 0.1),
        "gather, expand, SDPA": expanded,
    }
    name = f"latent attention float32, {num_rows} rows of a prompt of {length}"
    timings = setup.time(contestants)
    # Scores over the latent and the rotated part, and the sum of latents.
    num_macs = HEADS * int(lengths.sum()) * (2 * RANK + ROPE_DIM)
    bound = setup.of_peak(num_macs, timings["ours"].median_s)
    return figure(name, timings, "ours", *bound)
