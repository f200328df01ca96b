"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

import torch
from torch import Tensor
from torch.nn import functional

from understudy.model.adapter import AdapterBatch
from understudy.model.attention import AttentionContext, LatentHeads
from understudy.model.config import ModelConfig
from understudy.model.linear import Plain, Weights, linear, vector
from understudy.model.rope import Angles, rotate, rotate_pairs
from understudy.model.shapes import layer_prefix


class LatentAttention:
    """One attention layer that caches a latent and a rotated key, both shared by all heads."""

    def __init__(self, config: ModelConfig, weights: Weights, index: int) -> None:
        assert config.latent is not None
        prefix, place = layer_prefix(config, index)
        prefix = f"{prefix}.self_attn{place}"
        self._index, self._shape, self._eps = index, config.latent, config.rms_norm_eps
        self._rotate = rotate_pairs if config.latent.is_interleaved else rotate
        is_direct = config.latent.query_rank is None
        self._first = "q_proj" if is_direct else "q_a_proj"
        self._query_down = linear(weights, f"{prefix}.{self._first}")
        self._query_up = None if is_direct else linear(weights, f"{prefix}.q_b_proj")
        self._query_norm = None if is_direct else vector(weights, f"{prefix}.q_a_layernorm.weight")
        self._down = linear(weights, f"{prefix}.kv_a_proj_with_mqa")
        self._norm = vector(weights, f"{prefix}.kv_a_layernorm.weight")
        self._output = linear(weights, f"{prefix}.o_proj")
        self._up = linear(weights, f"{prefix}.kv_b_proj")
        scaling = config.rope_scaling
        score_factor = 1.0 if scaling is None else scaling.score_factor
        self._scale = config.head_dim**-0.5 * score_factor
        self._num_heads = config.num_heads
        # A plain float32 matrix is viewed afresh: gradients of each step need a graph of their own.
        self._kept = None if isinstance(self._up.matrix, Plain) else self._heads()

    def __call__(
        self,
        hidden: Tensor,
        angles: Angles,
        context: AttentionContext,
        adapter: AdapterBatch | None,
    ) -> Tensor:
        """Return the attention of normed `hidden` (T, D)."""
        index, shape = self._index, self._shape
        query, both = self._query_down(hidden), self._down(hidden)
        if adapter is not None:
            query = adapter.apply(index, self._first, hidden, query)
            both = adapter.apply(index, "kv_a_proj_with_mqa", hidden, both)
        if self._query_up is not None and self._query_norm is not None:
            query = self._query_up(self._normalise(query, self._query_norm))
        query = query.view(hidden.shape[0], self._num_heads, -1)
        if shape.query_scale != 1.0:
            query = query * shape.query_scale
        nope, rope = query[..., : shape.nope_dim], query[..., shape.nope_dim :]
        latent, rope_key = both[:, : shape.kv_rank], both[:, shape.kv_rank :]
        latent = self._normalise(latent, self._norm)
        if shape.kv_scale != 1.0:
            latent = latent * shape.kv_scale
        query = torch.cat((nope, self._rotate(rope, angles)), dim=-1)
        rope_key = self._rotate(rope_key[:, None], angles)[:, 0]
        heads = self._heads() if self._kept is None else self._kept
        attended = context.attend_latent(index, query, latent, rope_key, heads).flatten(1)
        output = self._output(attended)
        return output if adapter is None else adapter.apply(index, "o_proj", attended, output)

    def _heads(self) -> LatentHeads:
        shape = self._shape
        up = self._up.matrix.dense().view(self._num_heads, -1, shape.kv_rank)
        key_up, value_up = up[:, : shape.nope_dim], up[:, shape.nope_dim :]
        return LatentHeads(self._up, key_up, value_up, self._scale)

    def _normalise(self, states: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(states, weight.shape, weight, self._eps)
