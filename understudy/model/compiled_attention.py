"""Attention with its norms through compiled operators: grouped, and over latents.

Each sublayer normalises, projects, rotates, stores, attends and adds, a row to the same bits
whatever else is in the step; with an adapter single operators do what one does without.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from understudy.model.adapter import AdapterBatch
from understudy.model.config import ModelConfig
from understudy.model.grouped import GroupedWeights
from understudy.model.kv_planes import Plane
from understudy.model.latent import DOWN, LatentWeights
from understudy.model.layer import sublayer_norms
from understudy.model.linear import Linear, Weights
from understudy.model.packed import weight_of
from understudy.model.rope import Angles
from understudy_kernels import CacheView, LatentView, PackedHeads, Rows, ops
from understudy_kernels.packing import pack_heads


@dataclass(frozen=True, slots=True)
class CompiledStep:
    """What the rows of a step see, and where their keys and values go."""

    angles: Angles  # (T, rotary_dim / 2) each
    slots: Tensor
    rows: Rows
    caches: tuple[tuple[Plane, ...], ...]
    """The cache entries of every attention."""


class CompiledGrouped:
    """A sublayer whose heads have keys and values of their own or share them by groups."""

    def __init__(
        self, config: ModelConfig, weights: Weights, index: int, *, is_exact: bool
    ) -> None:
        """Keep references to `weights`, whose matrices are `Packed`."""
        self._index, self._is_exact, self._eps = index, is_exact, config.rms_norm_eps
        self.norm, self.ffn_norm = sublayer_norms(config, weights, index)
        self.projections = GroupedWeights.of(config, weights, index)
        three = (self.projections.query, self.projections.key, self.projections.value)
        biases = [each.bias for each in three if each.bias is not None]
        self.bias = torch.cat(biases) if biases else None  # of query, key and value, side by side
        self._num_heads, self._scale = config.num_heads, config.head_dim**-0.5

    def attend(
        self, hidden: Tensor, step: CompiledStep, adapter: AdapterBatch | None
    ) -> tuple[Tensor, Tensor]:
        """Return the hidden states (T, D) after attention, and normed for the feed-forward."""
        keys, values = step.caches[self._index]
        cache = CacheView(keys.values, values.values, keys.scales, values.scales)
        of_query, of_key = self.projections.head_norms or (None, None)
        query = ops.rotate_and_cache(
            self._project(hidden, adapter),
            step.angles,
            cache,
            step.slots,
            self._num_heads,
            query_norm=of_query,
            key_norm=of_key,
            eps=self._eps,
        )
        attended = ops.paged_attention(query, cache, step.rows, self._scale).flatten(1)
        output = _output(self._index, self.projections.output, attended, adapter)
        normed, hidden = ops.add_rms_norm(output, hidden, self.ffn_norm, self._eps)
        return hidden, normed

    def _project(self, hidden: Tensor, adapter: AdapterBatch | None) -> Tensor:
        """Return query, key and value rows side by side."""
        weights = self.projections
        named = (("q_proj", weights.query), ("k_proj", weights.key), ("v_proj", weights.value))
        if adapter is None and weights.query_up is None:
            matrices = [weight_of(projection.matrix) for _, projection in named]
            return ops.normed_linears(
                hidden, self.norm, self._eps, matrices, bias=self.bias, exact=self._is_exact
            )
        normed = normalised(hidden, self.norm, self._eps)
        rows = [projection(normed) for _, projection in named]
        if adapter is not None:
            pairs = zip(named, rows, strict=True)
            rows = [adapter.apply(self._index, name, normed, row) for (name, _), row in pairs]
        if weights.query_up is not None:
            norm, up = weights.query_up
            rows[0] = up(normalised(rows[0], norm, self._eps))
        return torch.cat(rows, dim=1)


class CompiledLatent:
    """A sublayer that caches a latent and a rotated key, both shared by all heads."""

    def __init__(
        self, config: ModelConfig, weights: Weights, index: int, *, is_exact: bool
    ) -> None:
        """Keep references to `weights`, whose matrices are `Packed`."""
        assert config.latent is not None
        shape = config.latent
        self._index, self._is_exact, self._eps = index, is_exact, config.rms_norm_eps
        self._norm, self._ffn_norm = sublayer_norms(config, weights, index)
        self._projections = LatentWeights.of(config, weights, index)
        self._heads: PackedHeads = pack_heads(
            weight_of(self._projections.up.matrix),
            config.num_heads,
            shape.nope_dim,
            shape.value_dim,
        )
        self._shape, self._num_heads = shape, config.num_heads

    def attend(
        self, hidden: Tensor, step: CompiledStep, adapter: AdapterBatch | None
    ) -> tuple[Tensor, Tensor]:
        """Return the hidden states (T, D) after attention, and normed for the feed-forward."""
        latents, keys = step.caches[self._index]
        cache = LatentView(keys.values, latents.values, keys.scales, latents.scales)
        query, compressed = self._project(hidden, adapter)
        rotated = ops.rotate_and_cache_latent(
            query.contiguous(),
            compressed.contiguous(),
            step.angles,
            cache,
            step.slots,
            self._num_heads,
            self._projections.norm,
            eps=self._eps,
            query_scale=self._shape.query_scale,
            latent_scale=self._shape.kv_scale,
            interleaved=self._shape.is_interleaved,
        )
        scale = self._projections.scale
        attended = ops.latent_attention(rotated, self._heads, cache, step.rows, scale).flatten(1)
        output = _output(self._index, self._projections.output, attended, adapter)
        normed, hidden = ops.add_rms_norm(output, hidden, self._ffn_norm, self._eps)
        return hidden, normed

    def _project(self, hidden: Tensor, adapter: AdapterBatch | None) -> tuple[Tensor, Tensor]:
        """Return queries before their rotation, and latent and key side by side."""
        weights = self._projections
        if adapter is None:
            matrices = [weight_of(each.matrix) for each in (weights.query_down, weights.down)]
            both = ops.normed_linears(hidden, self._norm, self._eps, matrices, exact=self._is_exact)
            query, compressed = both.split([each.num_out for each in matrices], dim=1)
        else:
            normed = normalised(hidden, self._norm, self._eps)
            query, compressed = weights.query_down(normed), weights.down(normed)
            query = adapter.apply(self._index, weights.query_name, normed, query)
            compressed = adapter.apply(self._index, DOWN, normed, compressed)
        if weights.query_up is not None:
            norm, up = weights.query_up
            query = ops.normed_linears(
                query.contiguous(), norm, self._eps, [weight_of(up.matrix)], exact=self._is_exact
            )
        return query, compressed


def normalised(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the RMS norm of `hidden` (T, D)."""
    return ops.add_rms_norm(hidden, torch.zeros_like(hidden), weight, eps)[0]


def _output(
    index: int, projection: Linear, attended: Tensor, adapter: AdapterBatch | None
) -> Tensor:
    output = projection(attended)
    return output if adapter is None else adapter.apply(index, "o_proj", attended, output)
