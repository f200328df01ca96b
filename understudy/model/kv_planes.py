"""Where one cached thing of one layer lies in every block, and how it is stored.

A block is one contiguous run of bytes, `[layer][entry][head][token][width]`: what the KV tier
stores and what a restarted worker reads back. Attention reads head by head, so a head's tokens lie
together: memory gives half as much where it is read in pieces of 256 bytes. In int8 each plane's
values are followed by one float32 scale per token and head, `[head][token]`; a value is off by at
most half a scale, which is the largest number of its vector / 127.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from understudy.model.config import ModelConfig
from understudy.model.traits import CacheEntry

# Every plane starts where an element of any type may start.
ALIGNMENT: Final = 4
SCALE_BYTES: Final = 4
# Vectors of smaller numbers count as zero, and zero has a scale.
LEAST_LARGEST: Final = 1e-20
DTYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}
"""Types that keys, values and latents are cached in."""


@dataclass(frozen=True, slots=True)
class Plane:
    """Views into the blocks' storage; `scales` only for int8."""

    values: Tensor  # (num_blocks, block_size, heads, width)
    scales: Tensor | None = None  # (num_blocks, block_size, heads)

    def write(self, blocks: Tensor, offsets: Tensor, rows: Tensor) -> None:
        """Store rows (T, heads, width) at (blocks, offsets), both (T,)."""
        if self.scales is None:
            self.values[blocks, offsets] = rows.to(self.values.dtype)
            return
        values, scales = quantise(rows)
        self.values[blocks, offsets] = values
        self.scales[blocks, offsets] = scales

    def read(self, blocks: Tensor) -> Tensor:
        """Return the tokens of tables (B, n) in float32: (B, heads, n * block_size, width)."""
        flat = blocks.flatten()
        values = self.values.index_select(0, flat).float()
        if self.scales is not None:
            values = values * self.scales.index_select(0, flat).unsqueeze(-1)
        return values.view(blocks.shape[0], -1, *values.shape[2:]).transpose(1, 2)


def quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 values and float32 scales (T, heads) of rows (T, heads, width)."""
    scales = rows.abs().amax(dim=-1).float().clamp_min(LEAST_LARGEST) / 127.0
    return (rows.float() / scales.unsqueeze(-1)).round().to(torch.int8), scales


def block_bytes(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Return the bytes of one block of `block_size` tokens, all layers."""
    layer = sum(_plane_bytes(entry, block_size, dtype) for entry in config.cache_entries)
    return config.num_attentions * layer


def cut_planes(
    storage: Tensor,  # (num_blocks, block_bytes) uint8
    config: ModelConfig,
    block_size: int,
    dtype: torch.dtype,
) -> Iterator[tuple[Plane, ...]]:
    """Yield the planes of each layer, in the order of the config's cache entries."""
    start = 0
    for _ in range(config.num_attentions):
        planes = []
        for entry in config.cache_entries:
            planes.append(_plane(storage, start, entry, block_size, dtype))
            start += _plane_bytes(entry, block_size, dtype)
        yield tuple(planes)


def stack_planes(
    storage: Tensor,  # (num_blocks, block_bytes) uint8
    config: ModelConfig,
    block_size: int,
    dtype: torch.dtype,
) -> Plane:
    """Return the keys and values of all layers as one plane, where both have one shape.

    Values are (num_blocks, layers, 2, block_size, heads, width), scales the same without width.
    """
    entry = config.cache_entries[0]
    plane_bytes = _plane_bytes(entry, block_size, dtype)
    planes = storage.view(storage.shape[0], config.num_attentions, 2, plane_bytes)
    inner = (entry.num_heads, block_size, entry.width)
    size = math.prod(inner) * dtype.itemsize
    values = planes[..., :size].view(dtype).unflatten(-1, inner).transpose(-3, -2)
    if dtype != torch.int8:
        return Plane(values)
    start = _aligned(size)
    scales = planes[..., start : start + block_size * entry.num_heads * SCALE_BYTES]
    return Plane(values, scales.view(torch.float32).unflatten(-1, inner[:2]).transpose(-2, -1))


def _plane(
    storage: Tensor, start: int, entry: CacheEntry, block_size: int, dtype: torch.dtype
) -> Plane:
    inner = (entry.num_heads, block_size, entry.width)
    size = math.prod(inner) * dtype.itemsize
    values = storage[:, start : start + size].view(dtype).view(-1, *inner).transpose(1, 2)
    if dtype != torch.int8:
        return Plane(values)
    start += _aligned(size)
    scales = storage[:, start : start + block_size * entry.num_heads * SCALE_BYTES]
    return Plane(values, scales.view(torch.float32).view(-1, *inner[:2]).transpose(1, 2))


def _plane_bytes(entry: CacheEntry, block_size: int, dtype: torch.dtype) -> int:
    num_vectors = block_size * entry.num_heads
    size = _aligned(num_vectors * entry.width * dtype.itemsize)
    return size + (_aligned(num_vectors * SCALE_BYTES) if dtype == torch.int8 else 0)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
