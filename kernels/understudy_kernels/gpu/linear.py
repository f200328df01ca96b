"""Linear layers over packed weights: dequantised tile by tile in registers, then multiplied.

One kernel serves plain layers (one expert, rows in order) and grouped ones (`tile_experts` says
whose weights a tile of rows meets, `sources` where its rows lie).
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from understudy_kernels.formats import num_groups
from understudy_kernels.gpu.norm import rms_norm
from understudy_kernels.reference.checks import check_floats, checked_format, require

ROW_TILE = 16
COLUMN_TILE = 64


@triton.jit
def _half_at(address):
    low = tl.load(address).to(tl.uint16)
    high = tl.load(address + 1).to(tl.uint16)
    return (low | (high << 8)).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _nibble(run, lane, inner):
    """The nibble of (input `inner` in 0..31, lane) in 256 bytes from `run`."""
    quad = inner // 4
    packed = tl.load(run + 64 * (quad // 2) + lane * 4 + inner % 4)
    return ((packed >> ((quad % 2) * 4).to(tl.uint8)) & 15).to(tl.float32)


@triton.jit
def _weights(group, lane, block, inner, FORMAT: tl.constexpr):
    """Weights of (32 inputs, columns) of one block; `group` points at each column's group."""
    if FORMAT == 0:
        at = (group + block * 2048 + (inner * 16 + lane) * 4).to(tl.pointer_type(tl.float32))
        return tl.load(at)
    if FORMAT == 1:
        at = (group + block * 1024 + (inner * 16 + lane) * 2).to(tl.pointer_type(tl.float16))
        return tl.load(at).to(tl.float32)
    if FORMAT == 2:
        at = (group + block * 1024 + (inner * 16 + lane) * 2).to(tl.pointer_type(tl.bfloat16))
        return tl.load(at).to(tl.float32)
    if FORMAT == 3:
        unit = group + block * 544
        stored = tl.load(unit + 32 + 64 * (inner // 4) + lane * 4 + inner % 4)
        return stored.to(tl.int8, bitcast=True).to(tl.float32) * _half_at(unit + 2 * lane)
    if FORMAT == 4:
        unit = group + block * 288
        return (_nibble(unit + 32, lane, inner) - 8.0) * _half_at(unit + 2 * lane)
    if FORMAT == 5:
        unit = group + block * 320
        least = _half_at(unit + 32 + 2 * lane)
        return _nibble(unit + 64, lane, inner) * _half_at(unit + 2 * lane) + least
    if FORMAT == 6:
        unit = group + (block // 8) * 2368
        sub = unit + 64 + (block % 8) * 288
        scale = _half_at(unit + 2 * lane) * tl.load(sub + lane).to(tl.float32)
        least = _half_at(unit + 32 + 2 * lane) * tl.load(sub + 16 + lane).to(tl.float32)
        return _nibble(sub + 32, lane, inner) * scale - least
    unit = group + (block // 8) * 3360
    sub = unit + 32 + (block % 8) * 416
    own = tl.load(sub + 16 * (inner // 16) + lane).to(tl.int8, bitcast=True).to(tl.float32)
    quad = inner // 4
    upper = tl.load(sub + 288 + 64 * (quad // 4) + lane * 4 + inner % 4)
    upper = ((upper >> ((quad % 4) * 2).to(tl.uint8)) & 3).to(tl.float32)
    value = _nibble(sub + 32, lane, inner) + 16.0 * upper - 32.0
    return value * _half_at(unit + 2 * lane) * own


@triton.jit
def _linear_kernel(
    hidden_ptr, packed_ptr, out_ptr, sources_ptr, experts_ptr,
    num_rows, num_out, num_in, num_blocks, group_bytes, expert_bytes, out_stride,
    FORMAT: tl.constexpr, IS_GROUPED: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    rows = tile * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    base = packed_ptr
    sources = rows
    is_row = rows < num_rows
    if IS_GROUPED:
        # A tile without an expert has no rows either; it reads the first one's weights for nothing.
        base += tl.maximum(tl.load(experts_ptr + tile), 0).to(tl.int64) * expert_bytes
        sources = tl.load(sources_ptr + rows)
        is_row = sources >= 0
    is_column = columns < num_out
    # Columns past the end read the first group: their sums are dropped.
    safe = tl.where(is_column, columns, 0)
    group = base + (safe // 16).to(tl.int64)[None, :] * group_bytes
    lane = (safe % 16)[None, :]
    inner = tl.arange(0, 32)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for block in range(num_blocks):
        inputs = block * 32 + inner
        at = hidden_ptr + sources.to(tl.int64)[:, None] * num_in + inputs[None, :]
        given = tl.load(at, mask=is_row[:, None] & (inputs < num_in)[None, :], other=0.0)
        weights = _weights(group, lane, block, inner[:, None], FORMAT)
        total = tl.dot(given, weights, total, input_precision=PRECISION)
    at = out_ptr + rows.to(tl.int64)[:, None] * out_stride + columns[None, :]
    tl.store(at, total, mask=is_row[:, None] & is_column[None, :])


@triton.jit
def _embedding_kernel(
    ids_ptr, packed_ptr, out_ptr, num_rows, num_out, num_in, group_bytes,
    FORMAT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inner = tl.arange(0, 32)
    ids = tl.load(ids_ptr + rows, mask=rows < num_rows, other=0)
    is_known = (ids >= 0) & (ids < num_out)
    safe = tl.where(is_known, ids, 0)
    group = packed_ptr + (safe // 16)[None, :] * group_bytes
    block = tl.program_id(1)
    weights = _weights(group, (safe % 16)[None, :], block, inner[:, None], FORMAT)
    weights = tl.where(is_known[None, :], weights, float("nan"))
    inputs = block * 32 + inner
    at = out_ptr + rows.to(tl.int64)[None, :] * num_in + inputs[:, None]
    tl.store(at, weights, mask=(rows < num_rows)[None, :] & (inputs < num_in)[:, None])


def quantised_embedding(
    ids: Tensor,
    packed: Tensor,
    format: int,  # noqa: A002
    num_out: int,
    num_in: int,
) -> Tensor:
    """Return rows `ids` (T,) of the table (num_out, num_in), (T, num_in).

    An id outside the table gives a row that is no number: to refuse it would wait for the device.
    """
    require(
        ids.dtype == torch.int64 and ids.dim() == 1 and ids.is_contiguous(),
        "ids must be a contiguous vector of int64.",
    )
    kind = checked_format(packed, format, num_out, num_in)
    out = torch.empty((ids.shape[0], num_in), device=packed.device)
    if ids.shape[0]:
        _embedding_kernel[(triton.cdiv(ids.shape[0], ROW_TILE), triton.cdiv(num_in, 32))](
            ids, packed, out, ids.shape[0], num_out, num_in,
            packed.numel() // num_groups(num_out), FORMAT=int(kind), ROWS=ROW_TILE,
        )  # fmt: skip
    return out


def launch(
    hidden: Tensor,
    packed: Tensor,
    number: int,
    num_out: int,
    out: Tensor,
    exact: bool,
    groups: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Write hidden @ weight^T to `out` (rows, num_out), whose rows may be part of wider ones.

    `groups` are the source row of each output row (-1: none) and the expert of each row tile.
    """
    num_in = hidden.shape[1]
    of_one = packed if groups is None else packed[0]
    kind = checked_format(of_one, number, num_out, num_in)
    num_rows = hidden.shape[0] if groups is None else groups[0].shape[0]
    if num_rows == 0:
        return
    sources, experts = (hidden, hidden) if groups is None else groups
    grid = (triton.cdiv(num_rows, ROW_TILE), triton.cdiv(num_out, COLUMN_TILE))
    _linear_kernel[grid](
        hidden, packed, out, sources, experts,
        num_rows, num_out, num_in, -(-num_in // 32), of_one.numel() // num_groups(num_out),
        of_one.numel(), out.stride(0),
        FORMAT=int(kind), IS_GROUPED=groups is not None, PRECISION="ieee" if exact else "tf32",
        ROWS=ROW_TILE, COLUMNS=COLUMN_TILE,
    )  # fmt: skip


def quantised_linear(
    hidden: Tensor,
    packed: Tensor,
    format: int,  # noqa: A002
    num_out: int,
    bias: Tensor | None,
    residual: Tensor | None,
    exact: bool,
) -> Tensor:
    """Return hidden (T, K) @ weight^T (+ bias (N,)) (+ residual (T, N)), (T, N)."""
    check_floats(hidden, 2, "hidden")
    out = hidden.new_empty((hidden.shape[0], num_out))
    launch(hidden, packed, format, num_out, out, exact)
    out = out if bias is None else out + bias
    return out if residual is None else out + residual


def normed_linears(
    hidden: Tensor,
    weight: Tensor,
    eps: float,
    packed: Sequence[Tensor],
    formats: Sequence[int],
    num_outs: Sequence[int],
    bias: Tensor | None,
    exact: bool,
) -> Tensor:
    """Return several linear layers of rms_norm(hidden), side by side: (T, sum of num_outs)."""
    require(len(packed) == len(formats) == len(num_outs), "lists of matrices differ in length.")
    normed = rms_norm(hidden, weight, eps)
    out = torch.empty((hidden.shape[0], sum(num_outs)), device=hidden.device)
    parts = out.split(list(num_outs), dim=1)
    for data, kind, num_out, part in zip(packed, formats, num_outs, parts, strict=True):
        launch(normed, data, kind, num_out, part, exact)
    return out if bias is None else out + bias
