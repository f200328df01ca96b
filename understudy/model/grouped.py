"""Attention whose heads have keys and values of their own or share them by groups.

Multi-head, grouped-query and multi-query attention; with a bias, with normed queries and keys
(Qwen3), or with factorised queries over one shared head of keys and values (multi-matrix
factorisation attention, arXiv 2412.19255; Step-3, arXiv 2507.19427).
"""

from torch import Tensor
from torch.nn import functional

from understudy.model.adapter import AdapterBatch
from understudy.model.attention import AttentionContext
from understudy.model.config import ModelConfig
from understudy.model.linear import Linear, Weights, linear, vector
from understudy.model.rope import Angles, rotate
from understudy.model.shapes import layer_prefix


class GroupedAttention:
    """One attention layer; see the module."""

    def __init__(self, config: ModelConfig, weights: Weights, index: int) -> None:
        prefix, place = layer_prefix(config, index)
        prefix = f"{prefix}.self_attn{place}"
        self._index, self._head_dim, self._eps = index, config.head_dim, config.rms_norm_eps
        self._query = linear(weights, f"{prefix}.q_proj")
        self._key = linear(weights, f"{prefix}.k_proj")
        self._value = linear(weights, f"{prefix}.v_proj")
        self._output = linear(weights, f"{prefix}.o_proj")
        self._query_up: tuple[Tensor, Linear] | None = None
        if config.query_rank is not None:
            norm = vector(weights, f"{prefix}.inter_norm.weight")
            self._query_up = norm, linear(weights, f"{prefix}.wq")
        self._norms: tuple[Tensor, Tensor] | None = None
        if config.has_qk_norm:
            norms = (vector(weights, f"{prefix}.{name}_norm.weight") for name in "qk")
            self._norms = (next(norms), next(norms))

    def __call__(
        self,
        hidden: Tensor,
        angles: Angles,
        context: AttentionContext,
        adapter: AdapterBatch | None,
    ) -> Tensor:
        """Return the attention of normed `hidden` (T, D)."""
        index = self._index
        query, key, value = self._query(hidden), self._key(hidden), self._value(hidden)
        if adapter is not None:
            query = adapter.apply(index, "q_proj", hidden, query)
            key = adapter.apply(index, "k_proj", hidden, key)
            value = adapter.apply(index, "v_proj", hidden, value)
        if self._query_up is not None:
            norm, up = self._query_up
            query = up(functional.rms_norm(query, norm.shape, norm, self._eps))
        heads = (hidden.shape[0], -1, self._head_dim)
        query, key = query.view(heads), key.view(heads)
        if self._norms is not None:
            of_query, of_key = self._norms
            query = functional.rms_norm(query, of_query.shape, of_query, self._eps)
            key = functional.rms_norm(key, of_key.shape, of_key, self._eps)
        rotated, value = (rotate(query, angles), rotate(key, angles)), value.view(heads)
        attended = context.attend(index, *rotated, value).flatten(1)
        output = self._output(attended)
        return output if adapter is None else adapter.apply(index, "o_proj", attended, output)
