"""The feed-forward of a layer as the attention worker sees it.

The gate, shared experts and experts of zero computation are applied here; what is left goes
through `Experts`, to this process or to others. Shared experts are computed while the others are
under way.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from understudy.model.config import ModelConfig
from understudy.model.ffn import Experts, FfnWeights, Gates, PendingHidden, ffn_shard
from understudy.model.gating import choose_experts, sigmoid
from understudy.model.linear import Weights, linear, vector


class FeedForward:
    """One layer's feed-forward over the `Experts` seam."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int, experts: Experts) -> None:
        self._config, self._layer, self._experts = config, layer, experts
        prefix, is_mixture = f"model.layers.{layer}.mlp", config.is_mixture(layer)
        self._gate = linear(weights, f"{prefix}.gate") if is_mixture else None
        has_bias = is_mixture and config.gate.has_bias
        bias_name = f"{prefix}.gate.e_score_correction_bias"
        self._bias = vector(weights, bias_name) if has_bias else None
        has_shared = is_mixture and config.shared_size > 0
        self._shared = FfnWeights.of(weights, f"{prefix}.shared_experts") if has_shared else None
        has_shared_gate = is_mixture and config.has_shared_gate
        gate_prefix = f"{prefix}.shared_expert_gate"
        self._shared_gate = linear(weights, gate_prefix) if has_shared_gate else None

    def submit(self, hidden: Tensor) -> PendingHidden:
        """Start the feed-forward of normed `hidden` (T, D)."""
        if self._gate is None:
            return self._experts.submit(self._layer, hidden, None)
        logits = self._gate(hidden)
        config = self._config
        gates = choose_experts(config.gate, config.num_experts_per_token, logits, self._bias)
        pending = self._submit(hidden, gates)
        return pending if self._shared is None else _Sum(pending, self._apply_shared(hidden))

    def _submit(self, hidden: Tensor, gates: Gates) -> PendingHidden:
        if not self._config.num_zero_experts:
            return self._experts.submit(self._layer, hidden, gates)
        is_zero = gates.ids >= self._config.num_experts
        identity = hidden * (gates.weights * is_zero).sum(dim=-1, keepdim=True)
        rows = (~is_zero).any(dim=-1).nonzero().flatten()
        if not rows.numel():
            return _Done(identity)
        computing = Gates(gates.ids.masked_fill(is_zero, 0), gates.weights.masked_fill(is_zero, 0))
        if rows.numel() == hidden.shape[0]:
            return _Sum(self._experts.submit(self._layer, hidden, computing), identity)
        chosen = Gates(computing.ids[rows], computing.weights[rows])
        pending = self._experts.submit(self._layer, hidden[rows], chosen)
        return _Sum(_Scattered(pending, rows, hidden.shape[0]), identity)

    def _apply_shared(self, hidden: Tensor) -> Tensor:
        assert self._shared is not None
        shared = ffn_shard(self._shared, hidden)
        if self._shared_gate is None:
            return shared
        return sigmoid(self._shared_gate(hidden)) * shared


@dataclass(frozen=True, slots=True)
class _Done:
    value: Tensor

    def wait(self) -> Tensor:
        return self.value


@dataclass(frozen=True, slots=True)
class _Sum:
    pending: PendingHidden
    local: Tensor

    def wait(self) -> Tensor:
        return self.pending.wait() + self.local


@dataclass(frozen=True, slots=True)
class _Scattered:
    pending: PendingHidden
    rows: Tensor
    num_rows: int

    def wait(self) -> Tensor:
        total = self.pending.wait()
        zeros = torch.zeros(self.num_rows, total.shape[1], dtype=total.dtype, device=total.device)
        return zeros.index_copy(0, self.rows, total)
