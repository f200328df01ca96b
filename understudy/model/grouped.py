"""Attention whose heads have keys and values of their own or share them by groups.

Multi-head, grouped-query and multi-query attention; with a bias, with normed queries and keys
(Qwen3), or with factorised queries over one shared head of keys and values (multi-matrix
factorisation attention, arXiv 2412.19255; Step-3, arXiv 2507.19427).
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from understudy.model.adapter import AdapterBatch
from understudy.model.attention import AttentionContext
from understudy.model.config import ModelConfig
from understudy.model.linear import Linear, Weights, linear, vector
from understudy.model.rope import Angles, rotate
from understudy.model.shapes import layer_prefix


@dataclass(frozen=True, slots=True)
class GroupedWeights:
    """The projections of one such attention, and what some families put between them."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    head_norms: tuple[Tensor, Tensor] | None
    """Norms of query and key heads, (head_dim,) each."""
    query_up: tuple[Tensor, Linear] | None
    """Norm and second factor of factorised queries."""

    @classmethod
    def of(cls, config: ModelConfig, weights: Weights, index: int) -> "GroupedWeights":
        """Return those of the attention `index`, from canonical tensor names."""
        layer, place = layer_prefix(config, index)
        prefix = f"{layer}.self_attn{place}"
        query, key, value, output = (linear(weights, f"{prefix}.{name}_proj") for name in "qkvo")
        head_norms = query_up = None
        if config.has_qk_norm:
            of_query, of_key = (vector(weights, f"{prefix}.{name}_norm.weight") for name in "qk")
            head_norms = of_query, of_key
        if config.query_rank is not None:
            norm = vector(weights, f"{prefix}.inter_norm.weight")
            query_up = norm, linear(weights, f"{prefix}.wq")
        return cls(query, key, value, output, head_norms, query_up)


class GroupedAttention:
    """One attention layer; see the module."""

    def __init__(self, config: ModelConfig, weights: Weights, index: int) -> None:
        self._index, self._head_dim, self._eps = index, config.head_dim, config.rms_norm_eps
        self._weights = GroupedWeights.of(config, weights, index)

    def __call__(
        self,
        hidden: Tensor,
        angles: Angles,
        context: AttentionContext,
        adapter: AdapterBatch | None,
    ) -> Tensor:
        """Return the attention of normed `hidden` (T, D)."""
        index, weights = self._index, self._weights
        query, key, value = weights.query(hidden), weights.key(hidden), weights.value(hidden)
        if adapter is not None:
            query = adapter.apply(index, "q_proj", hidden, query)
            key = adapter.apply(index, "k_proj", hidden, key)
            value = adapter.apply(index, "v_proj", hidden, value)
        if weights.query_up is not None:
            norm, up = weights.query_up
            query = up(functional.rms_norm(query, norm.shape, norm, self._eps))
        heads = (hidden.shape[0], -1, self._head_dim)
        query, key = query.view(heads), key.view(heads)
        if weights.head_norms is not None:
            of_query, of_key = weights.head_norms
            query = functional.rms_norm(query, of_query.shape, of_query, self._eps)
            key = functional.rms_norm(key, of_key.shape, of_key, self._eps)
        rotated, value = (rotate(query, angles), rotate(key, angles)), value.view(heads)
        attended = context.attend(index, *rotated, value).flatten(1)
        output = weights.output(attended)
        return output if adapter is None else adapter.apply(index, "o_proj", attended, output)
