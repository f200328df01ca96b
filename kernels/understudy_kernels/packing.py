"""Weights into the kernels' layout, once at load: GGUF blocks, floats, or quantised here.

Values are moved, never requantised. Memory beyond the result is a small multiple of one matrix.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from understudy.errors import FailedPrecondition
from understudy_kernels.formats import (
    BLOCK,
    LANES,
    Format,
    PackedExperts,
    PackedFfn,
    PackedHeads,
    PackedLinear,
    num_groups,
)
from understudy_kernels.reference.unpack import unpack

FLOAT_FORMATS: Final = {
    torch.float32: Format.F32,
    torch.float16: Format.F16,
    torch.bfloat16: Format.BF16,
}
# Bytes of one GGUF block.
RAW_BYTES: Final = {
    Format.Q8_0: 34,
    Format.Q4_0: 18,
    Format.Q4_1: 20,
    Format.Q4_K: 144,
    Format.Q6_K: 210,
}


def pack_gguf(raw: Tensor, kind: Format, name: str = "weight") -> PackedLinear:
    """Return the weight whose rows are the GGUF blocks `raw` (num_out, row bytes) uint8.

    Raises FailedPrecondition naming the tensor where the bytes do not fit the format or a scale is
    not a finite number.
    """
    block_bytes = RAW_BYTES.get(kind)
    if block_bytes is None or raw.dtype != torch.uint8 or raw.dim() != 2:
        raise FailedPrecondition(
            f"{name!r} is not made of GGUF blocks: {kind.name}, {raw.dtype}, {tuple(raw.shape)}.",
            {"tensor": name},
        )
    if raw.shape[0] == 0 or raw.shape[1] == 0 or raw.shape[1] % block_bytes:
        raise FailedPrecondition(
            f"{name!r} has rows of {raw.shape[1]} bytes, not a multiple of {block_bytes}"
            f" ({kind.name}).",
            {"tensor": name},
        )
    blocks = raw.reshape(raw.shape[0], -1, block_bytes)
    if kind is Format.Q4_K:
        data = _pack_q4_k(blocks, name)
    elif kind is Format.Q6_K:
        data = _pack_q6_k(blocks, name)
    else:
        data = _pack_simple(blocks, kind, name)
    inputs = blocks.shape[1] * kind.unit_inputs
    return PackedLinear(data.flatten().contiguous(), kind, raw.shape[0], inputs)


def pack_dense(weight: Tensor, name: str = "weight") -> PackedLinear:
    """Return a weight (num_out, num_in) in its own 16- or 32-bit format, computed in float32."""
    kind = FLOAT_FORMATS.get(weight.dtype)
    if kind is None or weight.dim() != 2 or not weight.numel():
        raise FailedPrecondition(
            f"{name!r} must be a matrix of float32, float16 or bfloat16, it is"
            f" {weight.dtype} {tuple(weight.shape)}.",
            {"tensor": name},
        )
    _check_finite(weight, name)
    num_out, num_in = weight.shape
    rows = functional.pad(weight, (0, -num_in % BLOCK, 0, -num_out % LANES))
    data = rows.view(num_groups(num_out), LANES, -1).transpose(1, 2).contiguous()
    return PackedLinear(data.view(torch.uint8).flatten(), kind, num_out, num_in)


def quantise_int8(weight: Tensor, group_size: int = BLOCK, name: str = "weight") -> PackedLinear:
    """Return `weight` (num_out, num_in) as int8 with one scale per `group_size` inputs."""
    scales, values = _quantise(weight, group_size, 127, name)
    quads = _quads(values.to(torch.int8).view(torch.uint8)).flatten(2)
    data = torch.cat((_halves(scales), quads), dim=-1)
    return PackedLinear(data.flatten(), Format.Q8_0, weight.shape[0], weight.shape[1])


def quantise_int4(weight: Tensor, group_size: int = BLOCK, name: str = "weight") -> PackedLinear:
    """Return `weight` (num_out, num_in) as int4 with one scale per `group_size` inputs."""
    scales, values = _quantise(weight, group_size, 7, name)
    data = torch.cat((_halves(scales), _nibbles((values + 8).to(torch.uint8))), dim=-1)
    return PackedLinear(data.flatten(), Format.Q4_0, weight.shape[0], weight.shape[1])


def stack_experts(experts: Sequence[PackedFfn]) -> PackedExperts:
    """Return experts of one shape and format as one stack.

    Where their matrices lie behind one another in memory, in this order, nothing is copied.
    """
    first = experts[0]
    for each in experts:
        shape = (each.formats, each.gate.num_out, each.gate.num_in)
        if shape != (first.formats, first.gate.num_out, first.gate.num_in):
            raise FailedPrecondition("Experts of one layer must have one shape and one format.")
    gate, up, down = first.formats
    return PackedExperts(
        gate=_stacked([each.gate.data for each in experts]),
        up=_stacked([each.up.data for each in experts]),
        down=_stacked([each.down.data for each in experts]),
        formats=(gate, up, down),
        ffn_size=first.gate.num_out,
    )


def pack_heads(up: PackedLinear, num_heads: int, nope_dim: int, value_dim: int) -> PackedHeads:
    """Return a latent's expansion (H (nope + value), rank) as the operators read it.

    It is `up` itself where both dimensions are multiples of 16; else rows are taken apart and kept
    as float32.
    """
    if nope_dim % LANES == 0 and value_dim % LANES == 0:
        return PackedHeads(up, value_dim)
    heads = unpack(up.data, up.format, up.num_out, up.num_in).view(num_heads, -1, up.num_in)
    parts = heads.split((nope_dim, value_dim), dim=1)
    filled = [functional.pad(part, (0, 0, 0, -part.shape[1] % LANES)) for part in parts]
    return PackedHeads(pack_dense(torch.cat(filled, dim=1).flatten(0, 1)), value_dim)


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    first, size = rows[0], rows[0].numel()
    storage, start = first.untyped_storage().data_ptr(), first.storage_offset()
    for index, row in enumerate(rows):
        is_next = row.storage_offset() == start + index * size and row.is_contiguous()
        if row.untyped_storage().data_ptr() != storage or not is_next:
            return torch.stack(list(rows))
    return first.as_strided((len(rows), size), (size, 1), start)


def _pack_simple(blocks: Tensor, kind: Format, name: str) -> Tensor:
    num_scales = 2 if kind is Format.Q4_1 else 1
    scales = [_half(blocks, 2 * index, name) for index in range(num_scales)]
    values = blocks[:, :, 2 * num_scales :]
    if kind is Format.Q8_0:
        stored = _quads(values).flatten(2)
    else:
        stored = _nibbles(torch.cat((values & 15, values >> 4), dim=-1))
    return torch.cat((*(_halves(scale) for scale in scales), stored), dim=-1)


def _pack_q4_k(blocks: Tensor, name: str) -> Tensor:
    scales, least = _half(blocks, 0, name), _half(blocks, 2, name)
    low, middle, high = blocks[:, :, 4:16].split(4, dim=-1)
    block_scales = torch.cat((low & 63, (high & 15) | ((low >> 6) << 4)), dim=-1)
    block_least = torch.cat((middle & 63, (high >> 4) | ((middle >> 6) << 4)), dim=-1)
    runs = blocks[:, :, 16:].unflatten(-1, (4, 1, BLOCK))
    values = torch.cat((runs & 15, runs >> 4), dim=-2).flatten(-3)
    parts = (_bytes(block_scales), _bytes(block_least), _nibbles(values).unflatten(1, (-1, 8)))
    inner = torch.cat(parts, dim=-1).flatten(2)
    return torch.cat((_halves(scales), _halves(least), inner), dim=-1)


def _pack_q6_k(blocks: Tensor, name: str) -> Tensor:
    low = blocks[:, :, :128].unflatten(-1, (2, 1, 64))
    high = blocks[:, :, 128:192].unflatten(-1, (2, 1, BLOCK))
    low = torch.cat((low & 15, low >> 4), dim=-2).flatten(-2)
    high = torch.cat([(high >> shift) & 3 for shift in (0, 2, 4, 6)], dim=-2).flatten(-2)
    quads = _quads(high.flatten(-2)).unflatten(2, (2, 4))
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    upper = (quads << shifts).sum(dim=-2, dtype=torch.uint8).flatten(2).unflatten(1, (-1, 8))
    scales = _pairs(blocks[:, :, 192:208])
    stored = _nibbles(low.flatten(-2)).unflatten(1, (-1, 8))
    inner = torch.cat((scales, stored, upper), dim=-1).flatten(2)
    return torch.cat((_halves(_half(blocks, 208, name)), inner), dim=-1)


def _half(blocks: Tensor, offset: int, name: str) -> Tensor:
    values = blocks[:, :, offset : offset + 2].contiguous().view(torch.float16).squeeze(-1)
    _check_finite(values, name)
    return values


def _check_finite(values: Tensor, name: str) -> None:
    if not bool(values.isfinite().all()):
        raise FailedPrecondition(
            f"{name!r} holds values that are not finite numbers.", {"tensor": name}
        )


def _grouped(values: Tensor) -> Tensor:
    """(N, U, ...) to (G, U, 16, ...), with rows of zeros after the last."""
    padding = [0, 0] * (values.dim() - 1) + [0, -values.shape[0] % LANES]
    groups: Tensor = functional.pad(values, padding).unflatten(0, (-1, LANES))
    return groups.transpose(1, 2)


def _halves(scales: Tensor) -> Tensor:
    """Float16 (N, U) to bytes (G, U, 32)."""
    return _grouped(scales).contiguous().view(torch.uint8)


def _bytes(values: Tensor) -> Tensor:
    """Bytes (N, U, 8) to (G, U, 8, 16)."""
    return _grouped(values).transpose(2, 3).contiguous()


def _pairs(values: Tensor) -> Tensor:
    """Bytes (N, U, 16) to (G, U, 8, 32): two runs of 16 rows for each block of 32."""
    pairs: Tensor = _grouped(values).transpose(2, 3).unflatten(2, (8, 2))
    return pairs.flatten(3).contiguous()


def _quads(values: Tensor) -> Tensor:
    """Bytes (N, U, 32 n) to (G, U n, 8, 64): four inputs of each of 16 rows, eight times."""
    num_rows = values.shape[0]
    blocks = _grouped(values.reshape(num_rows, -1, BLOCK))  # (G, U n, 16, 32)
    quads: Tensor = blocks.unflatten(-1, (8, 4))
    return quads.transpose(2, 3).flatten(3).contiguous()


def _nibbles(values: Tensor) -> Tensor:
    """Values below 16 (N, U, 32 n) to bytes (G, U n, 256), two quads in each byte run."""
    pairs: Tensor = _quads(values).unflatten(2, (4, 2))
    return ((pairs[:, :, :, 0] & 15) | (pairs[:, :, :, 1] << 4)).flatten(2)


def _quantise(weight: Tensor, group_size: int, limit: int, name: str) -> tuple[Tensor, Tensor]:
    if weight.dim() != 2 or group_size % BLOCK or weight.shape[1] % group_size:
        raise FailedPrecondition(
            f"{name!r} of shape {tuple(weight.shape)} has no groups of {group_size}; a group is a"
            f" multiple of {BLOCK} that divides the inputs.",
            {"tensor": name},
        )
    _check_finite(weight, name)
    groups = weight.float().unflatten(1, (-1, group_size))
    scales = (groups.abs().amax(dim=-1) / limit).half()
    _check_finite(scales, name)
    inverse = torch.where(scales > 0, 1.0 / scales.float(), 0.0)
    values = (groups * inverse.unsqueeze(-1)).round().clamp(-limit, limit)
    repeated = scales.repeat_interleave(group_size // BLOCK, dim=1)
    return repeated, values.flatten(1).unflatten(1, (-1, BLOCK))
