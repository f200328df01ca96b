"""Attention over a paged cache: one program per row and run of heads, with a running maximum."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from understudy_kernels.reference.attention import check_cache
from understudy_kernels.reference.checks import check_floats, require

HEAD_TILE = 16
WIDE_DIM = 256
"""Above this a tile of keys holds fewer tokens, or it would not fit into shared memory."""


@triton.jit
def cached(
    cache_ptr, scales_ptr, blocks, tokens, head, dims, is_token, dim,
    block_stride, token_stride, head_stride,
    scale_block, scale_token, scale_head, HAS_SCALES: tl.constexpr,
):  # fmt: skip
    """Read one head of some tokens as float32 (tokens, dims)."""
    at = blocks.to(tl.int64) * block_stride + tokens * token_stride + head * head_stride
    mask = is_token[:, None] & (dims < dim)[None, :]
    values = tl.load(cache_ptr + at[:, None] + dims[None, :], mask=mask, other=0).to(tl.float32)
    if HAS_SCALES:
        at = blocks.to(tl.int64) * scale_block + tokens * scale_token + head * scale_head
        values *= tl.load(scales_ptr + at, mask=is_token, other=0.0)[:, None]
    return values


@triton.jit
def _attention_kernel(
    query_ptr, keys_ptr, values_ptr, key_scales_ptr, value_scales_ptr, tables_ptr,
    sequences_ptr, lengths_ptr, out_ptr, scale, num_heads, shared, key_dim, value_dim, table_width,
    block_size, k0, k1, k2, v0, v1, v2, s0, s1, s2, u0, u1, u2,
    HAS_SCALES: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr,
    KEY_WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    within = tl.program_id(2) * HEADS + tl.arange(0, HEADS)
    is_head = within < shared
    heads = row * num_heads + kv_head * shared + within
    key_dims, value_dims = tl.arange(0, KEY_WIDTH), tl.arange(0, VALUE_WIDTH)
    at = query_ptr + heads[:, None] * key_dim + key_dims[None, :]
    query = tl.load(at, mask=is_head[:, None] & (key_dims < key_dim)[None, :], other=0.0)
    length = tl.load(lengths_ptr + row)
    table = tables_ptr + tl.load(sequences_ptr + row).to(tl.int64) * table_width
    best = tl.full((HEADS,), -1e30, dtype=tl.float32)
    total = tl.zeros((HEADS,), dtype=tl.float32)
    attended = tl.zeros((HEADS, VALUE_WIDTH), dtype=tl.float32)
    for start in range(0, length, TOKENS):
        positions = start + tl.arange(0, TOKENS)
        is_seen = positions < length
        blocks = tl.load(table + positions // block_size, mask=is_seen, other=0)
        tokens = (positions % block_size).to(tl.int64)
        keys = cached(
            keys_ptr, key_scales_ptr, blocks, tokens, kv_head, key_dims, is_seen, key_dim,
            k0, k1, k2, s0, s1, s2, HAS_SCALES,
        )  # fmt: skip
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(is_seen[None, :], scores, -1e30)
        top = tl.maximum(best, tl.max(scores, axis=1))
        weights = tl.where(is_seen[None, :], tl.exp(scores - top[:, None]), 0.0)
        kept = tl.exp(best - top)
        total = total * kept + tl.sum(weights, axis=1)
        values = cached(
            values_ptr, value_scales_ptr, blocks, tokens, kv_head, value_dims, is_seen, value_dim,
            v0, v1, v2, u0, u1, u2, HAS_SCALES,
        )  # fmt: skip
        attended = attended * kept[:, None]
        attended = tl.dot(weights, values, attended, input_precision="ieee")
        best = top
    attended = tl.where(total[:, None] > 0, attended / total[:, None], 0.0)
    at = out_ptr + heads[:, None] * value_dim + value_dims[None, :]
    tl.store(at, attended, mask=is_head[:, None] & (value_dims < value_dim)[None, :])


def paged_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    tables: Tensor,
    sequences: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    """Return softmax(scale * query . keys) values for each row: (T, H, value dim).

    Tables are not checked here, that would wait for the device: the caller's block manager has.
    """
    check_floats(query, 3, "query")
    check_cache(keys, values, key_scales, value_scales)
    num_rows, num_heads, key_dim = query.shape
    num_kv, value_dim = keys.shape[2], values.shape[3]
    require(
        key_dim == keys.shape[3] and num_heads % num_kv == 0,
        f"query {list(query.shape)} does not fit keys {list(keys.shape)}.",
    )
    attended = torch.empty((num_rows, num_heads, value_dim), device=query.device)
    if num_rows == 0:
        return attended
    has_scales = keys.dtype == torch.int8
    first, second = (key_scales, value_scales) if has_scales else (query, query)
    assert first is not None
    assert second is not None
    shared = num_heads // num_kv
    grid = (num_rows, num_kv, triton.cdiv(shared, HEAD_TILE))
    _attention_kernel[grid](
        query, keys, values, first, second, tables, sequences, lengths, attended,
        scale, num_heads, shared, key_dim, value_dim, tables.shape[1], keys.shape[1],
        *keys.stride()[:3], *values.stride()[:3], *first.stride()[:3], *second.stride()[:3],
        HAS_SCALES=has_scales, HEADS=HEAD_TILE, TOKENS=16 if key_dim > WIDE_DIM else 64,
        KEY_WIDTH=max(16, triton.next_power_of_2(key_dim)),
        VALUE_WIDTH=max(16, triton.next_power_of_2(value_dim)),
    )  # fmt: skip
    return attended
