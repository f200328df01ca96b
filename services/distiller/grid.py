"""Keys and values of a fixed number of sequences in one dense grid, for offline decoding.

The serving worker pages; offline, every row of the grid is a place that one sequence after the
other occupies, and a whole step attends in one call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from understudy.model.config import ModelConfig


class Grid:
    """An `AttentionContext` over (places, max_positions); call `begin` before each forward."""

    def __init__(self, config: ModelConfig, num_places: int, max_positions: int) -> None:
        shape = (num_places, max_positions, config.num_kv_heads, config.head_dim)
        self._keys = [torch.zeros(shape) for _ in range(config.num_layers)]
        self._values = [torch.zeros(shape) for _ in range(config.num_layers)]

    def begin(self, places: Sequence[int], starts: Sequence[int], counts: Sequence[int]) -> Tensor:
        """Announce `counts[i]` new tokens after `starts[i]` at place i; return positions (T,)."""
        widest, longest = max(counts), max(s + c for s, c in zip(starts, counts, strict=True))
        self._places = torch.tensor(places)
        self._longest = longest
        sizes, begins = torch.tensor(counts), torch.tensor(starts)
        column = torch.arange(widest)
        is_real = column < sizes[:, None]  # (B, widest)
        positions = begins[:, None] + column
        self._is_real = is_real
        self._row_places = self._places[:, None].expand(-1, widest)[is_real]
        self._row_positions = positions[is_real]
        self._packed = torch.cumsum(is_real.flatten(), 0).view_as(is_real) - 1
        self._mask = torch.arange(longest) <= positions[:, :, None]  # (B, widest, longest)
        return self._row_positions

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store the new keys and values, then attend over everything each sequence has."""
        keys, values = self._keys[layer], self._values[layer]
        keys[self._row_places, self._row_positions] = key
        values[self._row_places, self._row_positions] = value
        attended = functional.scaled_dot_product_attention(
            query[self._packed.clamp_min(0)].transpose(1, 2),
            keys[self._places, : self._longest].transpose(1, 2),
            values[self._places, : self._longest].transpose(1, 2),
            attn_mask=self._mask[:, None],
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return attended.transpose(1, 2)[self._is_real]
