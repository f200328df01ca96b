"""Seeded weights and caches in every format, with gguf's own dequantisation as the oracle."""

from dataclasses import dataclass

import gguf
import numpy as np
import torch
from torch import Tensor

from understudy_kernels import Format, PackedFfn, PackedLinear
from understudy_kernels.packing import (
    RAW_BYTES,
    pack_dense,
    pack_gguf,
)

GGUF_FORMATS = tuple(RAW_BYTES)
ALL_FORMATS = tuple(Format)
FLOATS = {Format.F32: torch.float32, Format.F16: torch.float16, Format.BF16: torch.bfloat16}


@dataclass(frozen=True)
class Weight:
    packed: PackedLinear
    values: Tensor
    """(num_out, num_in) float32, by the oracle."""


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def raw_blocks(kind: Format, num_out: int, num_in: int, seed: int) -> np.ndarray:
    """Valid GGUF rows: random codes under small finite scales."""
    random = np.random.default_rng(seed)
    num_blocks = num_in // kind.unit_inputs
    raw = random.integers(0, 256, (num_out, num_blocks, RAW_BYTES[kind]), dtype=np.uint8)
    offsets = {Format.Q4_1: (0, 2), Format.Q4_K: (0, 2), Format.Q6_K: (208,)}.get(kind, (0,))
    for offset in offsets:
        scales = random.uniform(-0.02, 0.02, (num_out, num_blocks)).astype(np.float16)
        raw[:, :, offset : offset + 2] = scales[..., None].view(np.uint8)
    return raw.reshape(num_out, -1)


def weight(kind: Format, num_out: int, num_in: int, seed: int = 0) -> Weight:
    if kind in FLOATS:
        dense = (normal((num_out, num_in), seed) * 0.1).to(FLOATS[kind])
        return Weight(pack_dense(dense), dense.float())
    raw = raw_blocks(kind, num_out, num_in, seed)
    values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind.name])
    packed = pack_gguf(torch.from_numpy(raw), kind)
    return Weight(packed, torch.from_numpy(values.copy()))


def ffn(kind: Format, size: int, ffn_size: int, seed: int = 0) -> PackedFfn:
    return PackedFfn(
        weight(kind, ffn_size, size, seed).packed,
        weight(kind, ffn_size, size, seed + 1).packed,
        weight(kind, size, ffn_size, seed + 2).packed,
    )
