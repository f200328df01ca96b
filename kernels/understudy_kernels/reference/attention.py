"""Rotation into, and attention over, a paged cache."""

import torch
from torch import Tensor
from torch.nn import functional

from understudy_kernels.reference.checks import check_floats, require

MAX_HEAD_DIM = 1024
CACHE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
INT8_LIMIT = 127.0


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

    Queries and keys are normed per head where norms are given, then rotated (halves) by cosine and
    sine (T, dim / 2). Slot s is token s % block_size of block s // block_size.
    """
    check_floats(projected, 2, "projected")
    check_cache(keys, values, key_scales, value_scales)
    num_rows, dim, num_kv = projected.shape[0], keys.shape[3], keys.shape[2]
    require(
        dim == values.shape[3] and dim % 2 == 0 and dim <= MAX_HEAD_DIM,
        f"keys and values must have one even dimension of at most {MAX_HEAD_DIM}, they have {dim}"
        f" and {values.shape[3]}.",
    )
    columns = (num_heads + 2 * num_kv) * dim
    require(
        num_heads > 0 and projected.shape[1] == columns,
        f"projected must have {columns} columns, it has {projected.shape[1]}.",
    )
    for angle in (cosine, sine):
        check_floats(angle, 2, "cosine and sine")
        require(
            angle.shape == (num_rows, dim // 2),
            f"cosine and sine must be ({num_rows}, {dim // 2}), they are {list(angle.shape)}.",
        )
    check_slots(slots, keys, num_rows)
    heads = projected.view(num_rows, num_heads + 2 * num_kv, dim)
    query, key, value = heads.split((num_heads, num_kv, num_kv), dim=1)
    if query_norm is not None:
        query = functional.rms_norm(query, (dim,), query_norm, eps)
    if key_norm is not None:
        key = functional.rms_norm(key, (dim,), key_norm, eps)
    blocks, tokens = slots // keys.shape[1], slots % keys.shape[1]
    store(keys, key_scales, blocks, tokens, _rotate(key, cosine, sine))
    store(values, value_scales, blocks, tokens, value)
    return _rotate(query, cosine, sine).contiguous()


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

    Row t of `query` (T, H, dim) sees the first `lengths[t]` tokens of the blocks in row
    `sequences[t]` of `tables`; a row that sees nothing is zero.
    """
    check_floats(query, 3, "query")
    check_cache(keys, values, key_scales, value_scales)
    num_rows, num_heads, dim = query.shape
    num_kv = keys.shape[2]
    require(
        dim == keys.shape[3] and num_heads > 0 and num_kv > 0 and num_heads % num_kv == 0,
        f"query {list(query.shape)} does not fit keys {list(keys.shape)}.",
    )
    for indices, dims, name in (
        (tables, 2, "tables"),
        (sequences, 1, "sequences"),
        (lengths, 1, "lengths"),
    ):
        require(
            indices.dtype == torch.int32 and indices.dim() == dims and indices.is_contiguous(),
            f"{name} must be contiguous int32 of {dims} dimensions.",
        )
    require(
        sequences.numel() == lengths.numel() == num_rows,
        f"sequences and lengths must have {num_rows} values.",
    )
    attended = query.new_zeros((num_rows, num_heads, values.shape[3]))
    for row, (sequence, length) in enumerate(
        zip(sequences.tolist(), lengths.tolist(), strict=True)
    ):
        blocks = _checked_blocks(tables, keys, row, sequence, length)
        if length == 0:
            continue
        key = _read(keys, key_scales, blocks, length)  # (kv_heads, length, dim)
        value = _read(values, value_scales, blocks, length)
        grouped = query[row].view(num_kv, -1, dim)
        weights = (grouped @ key.transpose(1, 2) * scale).softmax(dim=-1)
        attended[row] = (weights @ value).flatten(0, 1)
    return attended


def check_cache(
    keys: Tensor, values: Tensor, key_scales: Tensor | None, value_scales: Tensor | None
) -> None:
    """Refuse a cache whose parts do not belong together."""
    require(
        keys.dtype in CACHE_DTYPES,
        f"keys must be float32, bfloat16, float16 or int8, they are {keys.dtype}.",
    )
    for tensor, name in ((keys, "keys"), (values, "values")):
        require(
            tensor.dim() == 4
            and tensor.dtype == keys.dtype
            and tensor.shape[:3] == keys.shape[:3]
            and tensor.stride(3) == 1,
            f"{name} must be (blocks, block size, kv heads, dim) like keys {list(keys.shape)} with"
            f" adjacent values, they are {list(tensor.shape)}.",
        )
    if keys.dtype != torch.int8:
        return
    for scales, name in ((key_scales, "key_scales"), (value_scales, "value_scales")):
        require(
            scales is not None and scales.dtype == torch.float32 and scales.shape == keys.shape[:3],
            f"{name} must be float32 of shape {list(keys.shape[:3])} beside int8 keys.",
        )


def check_slots(slots: Tensor, keys: Tensor, num_rows: int) -> None:
    """Refuse slots outside the cache."""
    require(
        slots.dtype == torch.int64 and slots.dim() == 1 and slots.numel() == num_rows,
        f"slots must be {num_rows} contiguous int64.",
    )
    for outside in slots[(slots < 0) | (slots >= keys.shape[0] * keys.shape[1])].tolist():
        require(False, f"slot {outside} is outside {keys.shape[0]} blocks of {keys.shape[1]}.")


def _rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    cosine, sine = cosine[:, None], sine[:, None]
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def store(
    cache: Tensor, scales: Tensor | None, blocks: Tensor, tokens: Tensor, rows: Tensor
) -> None:
    """Store rows (T, heads, dim) as the cache's type, at (blocks, tokens)."""
    if cache.dtype == torch.int8 and scales is not None:
        magnitudes = rows.abs().amax(dim=-1)
        inverse = torch.where(magnitudes > 0, INT8_LIMIT / magnitudes, 0.0)
        scales[blocks, tokens] = magnitudes / INT8_LIMIT
        rows = (rows * inverse.unsqueeze(-1)).round()
    cache[blocks, tokens] = rows.to(cache.dtype)


def _read(cache: Tensor, scales: Tensor | None, blocks: Tensor, length: int) -> Tensor:
    """Return the first `length` tokens of `blocks` as float32 (kv_heads, length, dim)."""
    rows = cache[blocks].float()
    if cache.dtype == torch.int8 and scales is not None:
        rows = rows * scales[blocks].unsqueeze(-1)
    return rows.flatten(0, 1)[:length].transpose(0, 1)


def _checked_blocks(tables: Tensor, keys: Tensor, row: int, sequence: int, length: int) -> Tensor:
    require(
        0 <= sequence < tables.shape[0],
        f"row {row} names sequence {sequence} of {tables.shape[0]}.",
    )
    capacity = tables.shape[1] * keys.shape[1]
    require(0 <= length <= capacity, f"row {row} sees {length} tokens, its table holds {capacity}.")
    blocks = tables[sequence, : -(-length // keys.shape[1])].long()
    for block in blocks[(blocks < 0) | (blocks >= keys.shape[0])].tolist():
        require(False, f"sequence {sequence} names block {block} of {keys.shape[0]}.")
    return blocks
