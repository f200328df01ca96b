"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from understudy.model.adapter import AdapterBatch
from understudy.model.attention import AttentionContext, LatentHeads
from understudy.model.config import ModelConfig
from understudy.model.linear import Linear, Plain, Weights, linear, vector
from understudy.model.rope import Angles, rotate, rotate_pairs
from understudy.model.shapes import layer_prefix

DOWN: Final = "kv_a_proj_with_mqa"


@dataclass(frozen=True, slots=True)
class LatentWeights:
    """The projections of one latent attention."""

    query_name: str
    """What adapters call the first projection of queries."""
    query_down: Linear
    query_up: tuple[Tensor, Linear] | None
    """Norm and second factor of factorised queries."""
    down: Linear
    """To latent and rotated key, side by side."""
    norm: Tensor
    up: Linear
    """From the latent to keys and values of all heads."""
    output: Linear
    scale: float
    """The factor on scores."""

    @classmethod
    def of(cls, config: ModelConfig, weights: Weights, index: int) -> "LatentWeights":
        """Return those of the attention `index`, from canonical tensor names."""
        assert config.latent is not None
        layer, place = layer_prefix(config, index)
        prefix = f"{layer}.self_attn{place}"
        is_direct = config.latent.query_rank is None
        name = "q_proj" if is_direct else "q_a_proj"
        query_up = None
        if not is_direct:
            query_norm = vector(weights, f"{prefix}.q_a_layernorm.weight")
            query_up = query_norm, linear(weights, f"{prefix}.q_b_proj")
        scaling = config.rope_scaling
        return cls(
            query_name=name,
            query_down=linear(weights, f"{prefix}.{name}"),
            query_up=query_up,
            down=linear(weights, f"{prefix}.{DOWN}"),
            norm=vector(weights, f"{prefix}.kv_a_layernorm.weight"),
            up=linear(weights, f"{prefix}.kv_b_proj"),
            output=linear(weights, f"{prefix}.o_proj"),
            scale=config.head_dim**-0.5 * (1.0 if scaling is None else scaling.score_factor),
        )


class LatentAttention:
    """One attention layer that caches a latent and a rotated key, both shared by all heads."""

    def __init__(self, config: ModelConfig, weights: Weights, index: int) -> None:
        assert config.latent is not None
        self._index, self._shape, self._eps = index, config.latent, config.rms_norm_eps
        self._rotate = rotate_pairs if config.latent.is_interleaved else rotate
        self._weights = LatentWeights.of(config, weights, index)
        self._num_heads = config.num_heads
        # A plain float32 matrix is viewed afresh: gradients of each step need a graph of their own.
        self._kept = None if isinstance(self._weights.up.matrix, Plain) else self._heads()

    def __call__(
        self,
        hidden: Tensor,
        angles: Angles,
        context: AttentionContext,
        adapter: AdapterBatch | None,
    ) -> Tensor:
        """Return the attention of normed `hidden` (T, D)."""
        index, shape, weights = self._index, self._shape, self._weights
        query, both = weights.query_down(hidden), weights.down(hidden)
        if adapter is not None:
            query = adapter.apply(index, weights.query_name, hidden, query)
            both = adapter.apply(index, DOWN, hidden, both)
        if weights.query_up is not None:
            norm, up = weights.query_up
            query = up(self._normalise(query, norm))
        query = query.view(hidden.shape[0], self._num_heads, -1)
        if shape.query_scale != 1.0:
            query = query * shape.query_scale
        nope, rope = query[..., : shape.nope_dim], query[..., shape.nope_dim :]
        latent, rope_key = both[:, : shape.kv_rank], both[:, shape.kv_rank :]
        latent = self._normalise(latent, weights.norm)
        if shape.kv_scale != 1.0:
            latent = latent * shape.kv_scale
        query = torch.cat((nope, self._rotate(rope, angles)), dim=-1)
        rope_key = self._rotate(rope_key[:, None], angles)[:, 0]
        heads = self._heads() if self._kept is None else self._kept
        attended = context.attend_latent(index, query, latent, rope_key, heads).flatten(1)
        output = weights.output(attended)
        return output if adapter is None else adapter.apply(index, "o_proj", attended, output)

    def _heads(self) -> LatentHeads:
        shape = self._shape
        up = self._weights.up.matrix.dense().view(self._num_heads, -1, shape.kv_rank)
        key_up, value_up = up[:, : shape.nope_dim], up[:, shape.nope_dim :]
        return LatentHeads(self._weights.up, key_up, value_up, self._weights.scale)

    def _normalise(self, states: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(states, weight.shape, weight, self._eps)
