"""Keys and values of a fixed number of sequences in one dense grid, for offline decoding.

The serving worker pages; offline, every row of the grid is a place that one sequence after the
other occupies, and a whole step attends in one call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from understudy.model.attention import LatentHeads
from understudy.model.config import ModelConfig


class Grid:
    """An `AttentionContext` over (places, max_positions); call `begin` before each forward."""

    def __init__(self, config: ModelConfig, num_places: int, max_positions: int) -> None:
        first, second = (
            (num_places, max_positions, entry.num_heads, entry.width)
            for entry in config.cache_entries
        )
        self._firsts = [torch.zeros(first) for _ in range(config.num_attentions)]
        self._seconds = [torch.zeros(second) for _ in range(config.num_attentions)]

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
        keys, values = self._remember(layer, key, value)
        return self._attend(query, keys, values, None)

    def attend_latent(
        self, layer: int, query: Tensor, latent: Tensor, rope_key: Tensor, heads: LatentHeads
    ) -> Tensor:
        """Store the new latents, then attend over all of each sequence's."""
        latents, rope_keys = self._remember(layer, latent[:, None], rope_key[:, None])
        keys = torch.cat((latents, rope_keys), dim=-1)
        return heads.lift(self._attend(heads.absorb(query), keys, latents, heads.scale))

    def _remember(self, layer: int, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        for stored, rows in ((self._firsts[layer], first), (self._seconds[layer], second)):
            stored[self._row_places, self._row_positions] = rows
        firsts, seconds = (
            stored[self._places, : self._longest]
            for stored in (self._firsts[layer], self._seconds[layer])
        )
        return firsts, seconds

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, scale: float | None) -> Tensor:
        attended = functional.scaled_dot_product_attention(
            query[self._packed.clamp_min(0)].transpose(1, 2),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=self._mask[:, None],
            scale=scale,
            enable_gqa=query.shape[1] != keys.shape[2],
        )
        return attended.transpose(1, 2)[self._is_real]
