"""Rotation of queries and keys, and keys and values into the paged cache: one program per head."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from understudy_kernels.reference.attention import MAX_HEAD_DIM, check_cache
from understudy_kernels.reference.checks import check_floats, require


@triton.jit
def _rounded(values):
    """Return values rounded to integers, halves to the even one."""
    lower = tl.floor(values)
    distance = values - lower
    is_odd = lower.to(tl.int32) % 2 != 0
    return tl.where((distance > 0.5) | ((distance == 0.5) & is_odd), lower + 1.0, lower)


@triton.jit
def _scaled(first, second, factor, norm_ptr, offsets, half, is_pair, is_mine):
    """Return a head's halves times the norm's factor and weights, where it is the norm's."""
    of_first = tl.load(norm_ptr + offsets, mask=is_pair, other=0.0)
    of_second = tl.load(norm_ptr + half + offsets, mask=is_pair, other=0.0)
    return (
        tl.where(is_mine, first * factor * of_first, first),
        tl.where(is_mine, second * factor * of_second, second),
    )


@triton.jit
def _store_head(cache_ptr, scales_ptr, at, scale_at, offsets, first, second, is_kept,
                is_slot, half, IS_INT8: tl.constexpr):  # fmt: skip
    """Store a head's two halves, as int8 beside their scale where the cache is int8."""
    if IS_INT8:
        top = tl.maximum(tl.max(tl.abs(first), axis=0), tl.max(tl.abs(second), axis=0))
        inverse = tl.where(top > 0, 127.0 / top, 0.0)
        if is_slot:
            tl.store(scales_ptr + scale_at, top / 127.0)
        first, second = _rounded(first * inverse), _rounded(second * inverse)
    kind = cache_ptr.dtype.element_ty
    tl.store(cache_ptr + at + offsets, first.to(kind), mask=is_kept)
    tl.store(cache_ptr + at + half + offsets, second.to(kind), mask=is_kept)


@triton.jit
def _rotation_kernel(
    projected_ptr, cosine_ptr, sine_ptr, keys_ptr, values_ptr, key_scales_ptr, value_scales_ptr,
    slots_ptr, query_norm_ptr, key_norm_ptr, out_ptr, num_heads, num_kv, half, block_size,
    num_slots, eps, k0, k1, k2, v0, v1, v2, s0, s1, s2, u0, u1, u2,
    HAS_QUERY_NORM: tl.constexpr, HAS_KEY_NORM: tl.constexpr, IS_INT8: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    offsets = tl.arange(0, WIDTH)
    is_pair = offsets < half
    at = projected_ptr + (row * (num_heads + 2 * num_kv) + head) * 2 * half + offsets
    first = tl.load(at, mask=is_pair, other=0.0)
    second = tl.load(at + half, mask=is_pair, other=0.0)
    slot = tl.load(slots_ptr + row)
    is_slot = (slot >= 0) & (slot < num_slots)
    slots = slot + tl.zeros((WIDTH,), dtype=tl.int64)  # one for each pair: masks have one shape
    is_kept = is_pair & (slots >= 0) & (slots < num_slots)
    block, token = slot // block_size, slot % block_size
    if head < num_heads + num_kv:
        is_query = head < num_heads
        if HAS_QUERY_NORM or HAS_KEY_NORM:
            squares = tl.sum(first * first, axis=0) + tl.sum(second * second, axis=0)
            factor = tl.rsqrt(squares / (2 * half) + eps)
            if HAS_QUERY_NORM:
                first, second = _scaled(
                    first, second, factor, query_norm_ptr, offsets, half, is_pair, is_query
                )
            if HAS_KEY_NORM:
                first, second = _scaled(
                    first, second, factor, key_norm_ptr, offsets, half, is_pair, head >= num_heads
                )
        cosine = tl.load(cosine_ptr + row * half + offsets, mask=is_pair, other=0.0)
        sine = tl.load(sine_ptr + row * half + offsets, mask=is_pair, other=0.0)
        turned = first * cosine - second * sine
        second = second * cosine + first * sine
        if is_query:
            to = out_ptr + (row * num_heads + head) * 2 * half + offsets
            tl.store(to, turned, mask=is_pair)
            tl.store(to + half, second, mask=is_pair)
        else:
            kv = head - num_heads
            _store_head(
                keys_ptr, key_scales_ptr, block * k0 + token * k1 + kv * k2,
                block * s0 + token * s1 + kv * s2, offsets, turned, second, is_kept, is_slot,
                half, IS_INT8,
            )  # fmt: skip
    else:
        kv = head - num_heads - num_kv
        _store_head(
            values_ptr, value_scales_ptr, block * v0 + token * v1 + kv * v2,
            block * u0 + token * u1 + kv * u2, offsets, first, second, is_kept, is_slot, half,
            IS_INT8,
        )  # fmt: skip


def rotate_and_cache(
    projected: Tensor,
    cosine: Tensor,
    sine: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    slots: Tensor,
    num_heads: int,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    eps: float,
) -> Tensor:
    """Store keys and values of `projected` (T, (H + 2 kv_heads) dim); return queries (T, H, dim).

    As the reference's; what a slot outside the cache would get is dropped, because to refuse it
    would wait for the device: the caller's block manager has checked.
    """
    check_floats(projected, 2, "projected")
    check_cache(keys, values, key_scales, value_scales)
    num_rows, num_kv, dim = projected.shape[0], keys.shape[2], keys.shape[3]
    require(
        dim == values.shape[3] and dim % 2 == 0 and dim <= MAX_HEAD_DIM,
        f"keys and values must have one even dimension of at most {MAX_HEAD_DIM}.",
    )
    require(
        num_heads > 0
        and projected.shape[1] == (num_heads + 2 * num_kv) * dim
        and cosine.shape == sine.shape == (num_rows, dim // 2)
        and slots.shape == (num_rows,),
        f"projected {list(projected.shape)}, angles {list(cosine.shape)} and slots"
        f" {list(slots.shape)} do not fit {num_heads} heads over keys {list(keys.shape)}.",
    )
    queries = torch.empty((num_rows, num_heads, dim), device=projected.device)
    if num_rows == 0:
        return queries
    is_int8 = keys.dtype == torch.int8
    first, second = (key_scales, value_scales) if is_int8 else (keys, values)
    assert first is not None
    assert second is not None
    of_query, of_key = (projected if norm is None else norm for norm in (query_norm, key_norm))
    _rotation_kernel[(num_rows, num_heads + 2 * num_kv)](
        projected, cosine, sine, keys, values, first, second, slots, of_query, of_key, queries,
        num_heads, num_kv, dim // 2, keys.shape[1], keys.shape[0] * keys.shape[1], eps,
        *keys.stride()[:3], *values.stride()[:3], *first.stride()[:3], *second.stride()[:3],
        HAS_QUERY_NORM=query_norm is not None, HAS_KEY_NORM=key_norm is not None,
        IS_INT8=is_int8, WIDTH=triton.next_power_of_2(dim // 2),
    )  # fmt: skip
    return queries
