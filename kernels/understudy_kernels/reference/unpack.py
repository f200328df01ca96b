"""Packed weights back to float32: the layout's second description, slow and plain."""

import torch
from torch import Tensor

from understudy_kernels.formats import BLOCK, LANES, Format, num_groups

DTYPES = {Format.F32: torch.float32, Format.F16: torch.float16, Format.BF16: torch.bfloat16}


def unpack(packed: Tensor, kind: Format, num_out: int, num_in: int) -> Tensor:
    """Return the weight (num_out, num_in) as float32."""
    if kind in DTYPES:
        columns = packed.view(DTYPES[kind]).view(num_groups(num_out), -1, LANES)
        rows = columns.transpose(1, 2).reshape(num_groups(num_out) * LANES, -1)
        return rows[:num_out, :num_in].float()
    units = packed.view(num_groups(num_out), -1, kind.unit_bytes)
    if kind is Format.Q4_K:
        values, scales, offsets = _q4_k(units)
    elif kind is Format.Q6_K:
        values, scales, offsets = _q6_k(units)
    else:
        values, scales, offsets = _simple(units, kind)
    # values (G, blocks, 16, 32), scales and offsets (G, blocks, 16, 1 or 2)
    repeats = BLOCK // scales.shape[-1]
    weight = values * scales.repeat_interleave(repeats, -1) + offsets.repeat_interleave(repeats, -1)
    return weight.transpose(1, 2).reshape(-1, num_in)[:num_out]


def _simple(units: Tensor, kind: Format) -> tuple[Tensor, Tensor, Tensor]:
    scales = _halves(units[..., :32])
    if kind is Format.Q8_0:
        values = _rows(units[..., 32:].view(torch.int8).unflatten(-1, (8, 64)))
        return values, scales, torch.zeros_like(scales)
    if kind is Format.Q4_0:
        return _rows(_nibbles(units[..., 32:])), scales, scales * -8.0
    return _rows(_nibbles(units[..., 64:])), scales, _halves(units[..., 32:64])


def _q4_k(units: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    blocks = units[..., 64:].unflatten(-1, (8, 288))
    scales = _halves(units[..., :32])[:, :, None] * blocks[..., :16, None].float()
    least = _halves(units[..., 32:64])[:, :, None] * blocks[..., 16:32, None].float()
    values = _rows(_nibbles(blocks[..., 32:].flatten(1, 2)))
    return values, scales.flatten(1, 2), -least.flatten(1, 2)


def _q6_k(units: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    blocks = units[..., 32:].unflatten(-1, (8, 416)).flatten(1, 2)
    own = blocks[..., :32].view(torch.int8).unflatten(-1, (2, LANES)).transpose(-1, -2).float()
    scales = _halves(units[..., :32]).repeat_interleave(8, dim=1) * own
    runs = blocks[..., 288:].unflatten(-1, (2, 1, 64))
    upper = torch.cat([(runs >> shift) & 3 for shift in (0, 2, 4, 6)], dim=-2).flatten(-3, -2)
    values = _rows(_nibbles(blocks[..., 32:288]) | (upper << 4))
    return values, scales, scales * -32.0


def _halves(raw: Tensor) -> Tensor:
    """Bytes (..., 32) to float32 (..., 16, 1)."""
    return raw.contiguous().view(torch.float16).float().unsqueeze(-1)


def _nibbles(runs: Tensor) -> Tensor:
    """Bytes (G, blocks, 256) to quads (G, blocks, 8, 64)."""
    pairs = runs.unflatten(-1, (4, 1, 64))
    return torch.cat((pairs & 15, pairs >> 4), dim=-2).flatten(-3, -2)


def _rows(quads: Tensor) -> Tensor:
    """Quads (G, blocks, 8, 64) to float32 values (G, blocks, 16, 32)."""
    rows: Tensor = quads.unflatten(-1, (LANES, 4))
    return rows.transpose(-3, -2).flatten(-2).float()
