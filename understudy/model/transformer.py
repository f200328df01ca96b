"""The forward pass of every family, over two seams.

Where keys and values live is the `AttentionContext`'s business; where feed-forwards are computed
is that of `Experts`. The forward itself is plain differentiable torch: gradients flow into every
weight that requires them, and nothing here switches them off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from understudy.model.adapter import AdapterBatch
from understudy.model.attention import AttentionContext
from understudy.model.config import ModelConfig
from understudy.model.ffn import Experts, LocalExperts
from understudy.model.grouped import GroupedAttention
from understudy.model.latent import LatentAttention
from understudy.model.layer import make_layer, sublayer_norms
from understudy.model.linear import Weights, matrix, vector
from understudy.model.paged import PagedContext, PagedKv, PagedSequence
from understudy.model.rope import Angles, Rotary
from understudy.model.sampling import Sampled, SamplingParams, sample


class _Attention(Protocol):
    def __call__(
        self,
        hidden: Tensor,
        angles: Angles,
        context: AttentionContext,
        adapter: AdapterBatch | None,
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class _Step:
    angles: Angles
    context: AttentionContext


@dataclass(frozen=True, slots=True)
class _Sublayer:
    attention: _Attention
    attention_norm: Tensor
    ffn_norm: Tensor
    eps: float

    def attend(
        self, hidden: Tensor, step: _Step, adapter: AdapterBatch | None
    ) -> tuple[Tensor, Tensor]:
        normed = normalise(hidden, self.attention_norm, self.eps)
        hidden = hidden + self.attention(normed, step.angles, step.context, adapter)
        return hidden, normalise(hidden, self.ffn_norm, self.eps)


class Transformer:
    """A decoder over checked weights under canonical names."""

    # How torch adds up a row may depend on how many rows there are.
    is_batch_independent = False

    def __init__(
        self, config: ModelConfig, weights: Weights, experts: Experts | None = None
    ) -> None:
        """Keep references to `weights`; feed-forwards are local unless `experts` is given."""
        self.config = config
        used: Experts = LocalExperts(config, weights) if experts is None else experts
        self._rotary = Rotary(config)
        make_sublayer = partial(_sublayer, config, weights)
        self._layers = [
            make_layer(config, weights, layer, used, make_sublayer)
            for layer in range(config.num_layers)
        ]
        self._embedding = matrix(weights, "model.embed_tokens.weight")
        self._norm = vector(weights, "model.norm.weight")
        is_factorised = config.embedding_size is not None
        self._up = matrix(weights, "model.embed_up_proj.weight") if is_factorised else None
        self._down = matrix(weights, "model.embed_down_proj.weight") if is_factorised else None
        is_tied = config.tie_embeddings
        self._head = self._embedding if is_tied else matrix(weights, "lm_head.weight")

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        attention: AttentionContext,
        adapter: AdapterBatch | None = None,
    ) -> Tensor:
        """Return the final-normed hidden states (T, D) of `tokens` (T,) at `positions` (T,)."""
        hidden = self._embedding.embed(tokens)
        if self._up is not None:
            hidden = self._up.multiply(hidden)
        step = _Step(self._rotary.angles(positions), attention)
        for layer in self._layers:
            hidden = layer(hidden, step, adapter)
        return normalise(hidden, self._norm, self.config.rms_norm_eps)

    def advance(
        self,
        tokens: Tensor,
        kv: PagedKv,
        sequences: Sequence[PagedSequence],
        adapter: AdapterBatch | None = None,
    ) -> Tensor:
        """Return the final-normed hidden states (T, D) of the new `tokens` (T,) of `sequences`."""
        runs = [torch.arange(each.num_cached, each.end, device=kv.device) for each in sequences]
        positions = torch.cat(runs)
        return self.forward(tokens, positions, PagedContext(kv, sequences), adapter)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (T, V) of final-normed hidden states (T, D)."""
        if self._down is not None:
            hidden = self._down.multiply(hidden)
        return self._head.multiply(hidden)

    def sample(
        self,
        logits: Tensor,
        params: Sequence[SamplingParams],
        seeds: Sequence[int],
        positions: Sequence[int],
        mask: Tensor | None = None,
    ) -> Sampled:
        """Choose a token for each row of `logits`; see `understudy.model.sampling.sample`."""
        return sample(logits, params, seeds, positions, mask)


def normalise(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the RMS norm of `hidden` (T, D)."""
    return functional.rms_norm(hidden, weight.shape, weight, eps)


def _sublayer(config: ModelConfig, weights: Weights, index: int) -> _Sublayer:
    variant = GroupedAttention if config.latent is None else LatentAttention
    attention = variant(config, weights, index)
    return _Sublayer(attention, *sublayer_norms(config, weights, index), config.rms_norm_eps)
