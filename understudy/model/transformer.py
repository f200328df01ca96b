"""The forward pass of the llama family and its mixtures, over two seams.

Where keys and values live is the `AttentionContext`'s business; where feed-forwards are computed
is that of `Experts`. The forward itself is plain differentiable torch: gradients flow into every
weight that requires them, and nothing here switches them off.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from understudy.model.adapter import AdapterBatch
from understudy.model.attention import AttentionContext, Rotary, rotate
from understudy.model.config import ModelConfig
from understudy.model.ffn import Experts, Gates, LocalExperts


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    ffn_norm: Tensor
    gate: Tensor | None


class Transformer:
    """A decoder over checked weights under canonical (Hugging Face) names."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        experts: Experts | None = None,
    ) -> None:
        """Keep references to `weights`; feed-forwards are local unless `experts` is given."""
        self.config = config
        self._experts: Experts = LocalExperts(config, weights) if experts is None else experts
        self._rotary = Rotary(config.head_dim, config.rope_theta)
        self._layers = [_layer(config, weights, layer) for layer in range(config.num_layers)]
        self._embedding = weights["model.embed_tokens.weight"]
        self._embedding_up = weights.get("model.embed_up_proj.weight")
        self._norm = weights["model.norm.weight"]
        self._head_down = weights.get("model.embed_down_proj.weight")
        self._head = self._embedding if config.tie_embeddings else weights["lm_head.weight"]

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        attention: AttentionContext,
        adapter: AdapterBatch | None = None,
    ) -> Tensor:
        """Return the final-normed hidden states (T, D) of `tokens` (T,) at `positions` (T,)."""
        hidden = functional.embedding(tokens, self._embedding)
        if self._embedding_up is not None:
            hidden = functional.linear(hidden, self._embedding_up)
        angles = self._rotary.angles(positions)
        for index, layer in enumerate(self._layers):
            hidden = hidden + self._attend(index, layer, hidden, angles, attention, adapter)
            normed = self._normalise(hidden, layer.ffn_norm)
            gates = None if layer.gate is None else self._choose_experts(normed, layer.gate)
            hidden = hidden + self._experts.submit(index, normed, gates).wait()
        return self._normalise(hidden, self._norm)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (T, V) of final-normed hidden states (T, D)."""
        if self._head_down is not None:
            hidden = functional.linear(hidden, self._head_down)
        return functional.linear(hidden, self._head)

    def _attend(
        self,
        index: int,
        layer: _Layer,
        hidden: Tensor,
        angles: tuple[Tensor, Tensor],
        attention: AttentionContext,
        adapter: AdapterBatch | None,
    ) -> Tensor:
        normed = self._normalise(hidden, layer.attention_norm)
        query = functional.linear(normed, layer.query)
        key = functional.linear(normed, layer.key)
        value = functional.linear(normed, layer.value)
        if adapter is not None:
            query = adapter.apply(index, "q_proj", normed, query)
            key = adapter.apply(index, "k_proj", normed, key)
            value = adapter.apply(index, "v_proj", normed, value)
        heads = (hidden.shape[0], -1, self.config.head_dim)
        attended = attention.attend(
            index,
            rotate(query.view(heads), angles),
            rotate(key.view(heads), angles),
            value.view(heads),
        ).flatten(1)
        output = functional.linear(attended, layer.output)
        return output if adapter is None else adapter.apply(index, "o_proj", attended, output)

    def _normalise(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(hidden, weight.shape, weight, self.config.rms_norm_eps)

    def _choose_experts(self, hidden: Tensor, gate: Tensor) -> Gates:
        probabilities = functional.linear(hidden, gate).softmax(dim=-1, dtype=torch.float32)
        weights, ids = probabilities.topk(self.config.num_experts_per_token, dim=-1)
        return Gates(ids, weights / weights.sum(dim=-1, keepdim=True))


def _layer(config: ModelConfig, weights: Mapping[str, Tensor], layer: int) -> _Layer:
    prefix = f"model.layers.{layer}"
    projections = (weights[f"{prefix}.self_attn.{name}_proj.weight"] for name in "qkvo")
    query, key, value, output = projections
    return _Layer(
        attention_norm=weights[f"{prefix}.input_layernorm.weight"],
        query=query,
        key=key,
        value=value,
        output=output,
        ffn_norm=weights[f"{prefix}.post_attention_layernorm.weight"],
        gate=weights[f"{prefix}.block_sparse_moe.gate.weight"] if config.is_moe else None,
    )
