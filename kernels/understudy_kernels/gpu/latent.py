"""Latent attention: a program per row and sixteen heads reads each latent once, for both uses."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from understudy_kernels.gpu.attention import cached
from understudy_kernels.reference.checks import check_floats
from understudy_kernels.reference.latent import check_latents, head_weights

HEAD_TILE = 16
TOKEN_TILE = 16


@triton.jit
def _latent_kernel(
    nope_ptr, rope_ptr, keys_ptr, latents_ptr, key_scales_ptr, latent_scales_ptr, tables_ptr,
    sequences_ptr, lengths_ptr, out_ptr, scale, num_heads, rope_dim, rank, table_width, block_size,
    k0, k1, v0, v1, s0, s1, u0, u1,
    HAS_SCALES: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr,
    ROPE_WIDTH: tl.constexpr, RANK_WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    is_head = head < num_heads
    heads = row * num_heads + head
    rope_dims, rank_dims = tl.arange(0, ROPE_WIDTH), tl.arange(0, RANK_WIDTH)
    in_rope = is_head[:, None] & (rope_dims < rope_dim)[None, :]
    in_rank = is_head[:, None] & (rank_dims < rank)[None, :]
    rope = tl.load(rope_ptr + heads[:, None] * rope_dim + rope_dims[None, :], in_rope, other=0.0)
    nope = tl.load(nope_ptr + heads[:, None] * rank + rank_dims[None, :], in_rank, other=0.0)
    length = tl.load(lengths_ptr + row)
    table = tables_ptr + tl.load(sequences_ptr + row).to(tl.int64) * table_width
    best = tl.full((HEADS,), -1e30, dtype=tl.float32)
    total = tl.zeros((HEADS,), dtype=tl.float32)
    attended = tl.zeros((HEADS, RANK_WIDTH), dtype=tl.float32)
    for start in range(0, length, TOKENS):
        positions = start + tl.arange(0, TOKENS)
        is_seen = positions < length
        blocks = tl.load(table + positions // block_size, mask=is_seen, other=0)
        tokens = (positions % block_size).to(tl.int64)
        keys = cached(
            keys_ptr, key_scales_ptr, blocks, tokens, 0, rope_dims, is_seen, rope_dim,
            k0, k1, 0, s0, s1, 0, HAS_SCALES,
        )  # fmt: skip
        latents = cached(
            latents_ptr, latent_scales_ptr, blocks, tokens, 0, rank_dims, is_seen, rank,
            v0, v1, 0, u0, u1, 0, HAS_SCALES,
        )  # fmt: skip
        scores = tl.dot(nope, tl.trans(latents), input_precision="ieee")
        scores = tl.dot(rope, tl.trans(keys), scores, input_precision="ieee") * scale
        scores = tl.where(is_seen[None, :], scores, -1e30)
        top = tl.maximum(best, tl.max(scores, axis=1))
        weights = tl.where(is_seen[None, :], tl.exp(scores - top[:, None]), 0.0)
        kept = tl.exp(best - top)
        total = total * kept + tl.sum(weights, axis=1)
        attended = tl.dot(weights, latents, attended * kept[:, None], input_precision="ieee")
        best = top
    attended = tl.where(total[:, None] > 0, attended / total[:, None], 0.0)
    tl.store(out_ptr + heads[:, None] * rank + rank_dims[None, :], attended, mask=in_rank)


def latent_attention(
    query: Tensor,
    up: Tensor,
    format: int,  # noqa: A002
    value_dim: int,
    rope_keys: Tensor,
    latents: Tensor,
    rope_scales: Tensor | None,
    latent_scales: Tensor | None,
    tables: Tensor,
    sequences: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    """Return softmax(scale * query . keys) values for each row: (T, H, value_dim).

    The expansion is absorbed and lifted by torch's products over unpacked weights. Tables are not
    checked here, that would wait for the device: the caller's block manager has.
    """
    check_floats(query, 3, "query")
    check_latents(rope_keys, latents, rope_scales, latent_scales)
    num_rows, num_heads, width = query.shape
    rope_dim, rank = rope_keys.shape[3], latents.shape[3]
    sizes = (num_heads, width - rope_dim, value_dim, rank)
    key_up, value_up = head_weights(up, format, *sizes)
    nope, rope = query.split((width - rope_dim, rope_dim), dim=2)
    nope, rope = torch.einsum("thn,hnr->thr", nope, key_up).contiguous(), rope.contiguous()
    attended = torch.empty((num_rows, num_heads, rank), device=query.device)
    if num_rows == 0:
        return query.new_empty((0, num_heads, value_dim))
    has_scales = latents.dtype == torch.int8
    first, second = (rope_scales, latent_scales) if has_scales else (query, query)
    assert first is not None
    assert second is not None
    _latent_kernel[(num_rows, triton.cdiv(num_heads, HEAD_TILE))](
        nope, rope, rope_keys, latents, first, second, tables, sequences, lengths, attended,
        scale, num_heads, rope_dim, rank, tables.shape[1], latents.shape[1],
        *rope_keys.stride()[:2], *latents.stride()[:2], *first.stride()[:2], *second.stride()[:2],
        HAS_SCALES=has_scales, HEADS=HEAD_TILE, TOKENS=TOKEN_TILE,
        ROPE_WIDTH=max(16, triton.next_power_of_2(rope_dim)),
        RANK_WIDTH=max(16, triton.next_power_of_2(rank)),
    )  # fmt: skip
    return torch.einsum("thr,hvr->thv", attended, value_up).contiguous()
