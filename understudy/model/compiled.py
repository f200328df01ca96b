"""The forward pass of every kind of decoder, through compiled operators.

A dense decoder without adapters is one call for all layers. Where an adapter, a gate, a latent or
another worker takes part in a layer, the same operators run one by one, in the same order and to
the same bits: a row does not notice which of the two ways its step took.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from understudy.errors import Internal
from understudy.model.adapter import AdapterBatch
from understudy.model.compiled_attention import (
    CompiledGrouped,
    CompiledLatent,
    CompiledStep,
)
from understudy.model.config import ModelConfig
from understudy.model.ends import Ends
from understudy.model.ffn import Experts, LocalExperts
from understudy.model.kv_planes import Plane
from understudy.model.layer import Layer, make_layer
from understudy.model.linear import Weights
from understudy.model.packed import weight_of
from understudy.model.paged import PagedKv, PagedSequence
from understudy.model.rope import AngleTable, Rotary
from understudy.model.sampling import Sampled, SamplingParams, uniform
from understudy_kernels import DecoderLayers, Rows, ops

MAX_HEAD_DIM = 1024
MAX_LATENT = 4096


def is_compilable(config: ModelConfig) -> bool:
    """Whether the attention of this model is one that the operators know."""
    has_pairs = config.rotary_dim % 2 == 0 and config.rotary_dim <= MAX_HEAD_DIM
    return has_pairs and (config.latent is None or config.latent.kv_rank <= MAX_LATENT)


def whole_layers(config: ModelConfig, weights: Weights, *, is_exact: bool) -> DecoderLayers | None:
    """Return all layers as the one operator takes them; None where it does not know their kind."""
    if not is_compilable(config):
        return None
    local = LocalExperts(config, weights)
    return _whole(config, _layers(config, weights, local, is_exact=is_exact), local)


@dataclass(frozen=True, slots=True)
class _Storage:
    """The KV of an engine as operators see it."""

    kv: PagedKv
    caches: tuple[tuple[Plane, ...], ...]
    stacked: Plane | None  # of all layers, for the one call


class CompiledDecoder:
    """`Decoder` over packed weights. For inference, inside `torch.inference_mode()`."""

    is_batch_independent = True

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        experts: Experts | None = None,
        *,
        is_exact: bool,
    ) -> None:
        """Keep references to `weights`, whose matrices are `Packed`."""
        self.config = config
        self._is_exact = is_exact
        local = LocalExperts(config, weights) if experts is None else None
        used: Experts | None = local if experts is None else experts
        assert used is not None
        self._layers = _layers(config, weights, used, is_exact=is_exact)
        self._whole = None if local is None else _whole(config, self._layers, local)
        self._ends = Ends.of(config, weights, is_exact=is_exact)
        self._angles = AngleTable(Rotary(config), self._ends.norm.device)
        self._scale = config.head_dim**-0.5
        self._storage: _Storage | None = None

    def advance(
        self,
        tokens: Tensor,
        kv: PagedKv,
        sequences: Sequence[PagedSequence],
        adapter: AdapterBatch | None = None,
    ) -> Tensor:
        """Return the final-normed hidden states (T, D) of the new `tokens` (T,) of `sequences`."""
        storage = self._opened(kv)
        step = self._step(storage, sequences)
        hidden = self._ends.embed(tokens)
        if self._whole is not None and storage.stacked is not None and adapter is None:
            hidden = ops.decoder_layers(
                hidden,
                self._whole,
                step.angles,
                storage.stacked.values,
                step.slots,
                step.rows,
                self._scale,
                scales=storage.stacked.scales,
                exact=self._is_exact,
            )
        else:
            for layer in self._layers:
                hidden = layer(hidden, step, adapter)
        return self._ends.normalise(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (T, V) of final-normed hidden states (T, D)."""
        return self._ends.logits(hidden)

    def sample(
        self,
        logits: Tensor,
        params: Sequence[SamplingParams],
        seeds: Sequence[int],
        positions: Sequence[int],
        mask: Tensor | None = None,
    ) -> Sampled:
        """Choose a token for each row of `logits`, as `understudy.model.sampling.sample` does."""
        if not len(params) == len(seeds) == len(positions) == logits.shape[0]:
            raise Internal(
                f"Sampling got {logits.shape[0]} rows of logits, {len(params)} sequences."
            )
        drawn = map(uniform, seeds, positions)
        uniforms = [u if p.temperature > 0 else 0.0 for u, p in zip(drawn, params, strict=True)]
        floats = partial(torch.tensor, dtype=torch.float64, device=logits.device)
        tokens, logprobs, margins, losses = ops.sample_tokens(
            logits.contiguous(),
            mask,
            floats([p.temperature for p in params]),
            torch.tensor([p.top_k for p in params], device=logits.device),
            floats([p.top_p for p in params]),
            floats(uniforms),
        )
        return Sampled(tokens, logprobs, margins, losses)

    def _opened(self, kv: PagedKv) -> _Storage:
        if self._storage is None or self._storage.kv is not kv:
            caches = tuple(kv.planes(index) for index in range(self.config.num_attentions))
            self._storage = _Storage(kv, caches, kv.stacked() if self._whole is not None else None)
        return self._storage

    def _step(self, storage: _Storage, sequences: Sequence[PagedSequence]) -> CompiledStep:
        size, ends = storage.kv.block_size, [sequence.end for sequence in sequences]
        tables = np.zeros((len(sequences), -(-max(ends) // size)), np.int32)
        for table, sequence, end in zip(tables, sequences, ends, strict=True):
            num_used = -(-end // size)
            if sequence.num_new <= 0 or num_used > len(sequence.blocks):
                raise Internal(
                    f"A block table of {len(sequence.blocks) * size} tokens cannot take"
                    f" {sequence.num_new} new tokens after {sequence.num_cached}."
                )
            table[:num_used] = sequence.blocks[:num_used]
        counts = [sequence.num_new for sequence in sequences]
        owners = np.repeat(np.arange(len(sequences), dtype=np.int32), counts)
        positions = np.concatenate([np.arange(s.num_cached, s.end) for s in sequences])
        slots = tables[owners, positions // size].astype(np.int64) * size + positions % size
        device = storage.kv.device
        angles = self._angles.rows(torch.from_numpy(positions).to(device), max(ends) - 1)
        rows = Rows(
            torch.from_numpy(tables).to(device),
            torch.from_numpy(owners).to(device),
            torch.from_numpy((positions + 1).astype(np.int32)).to(device),
        )
        return CompiledStep(angles, torch.from_numpy(slots).to(device), rows, storage.caches)


def _layers(
    config: ModelConfig, weights: Weights, experts: Experts, *, is_exact: bool
) -> list[Layer[CompiledStep]]:
    variant = CompiledGrouped if config.latent is None else CompiledLatent
    make_sublayer = partial(variant, config, weights, is_exact=is_exact)
    return [
        make_layer(config, weights, layer, experts, make_sublayer)
        for layer in range(config.num_layers)
    ]


def _whole(
    config: ModelConfig, layers: Sequence[Layer[CompiledStep]], local: LocalExperts
) -> DecoderLayers | None:
    sublayers = [sublayer for layer in layers for sublayer in layer.sublayers]
    grouped = [each for each in sublayers if isinstance(each, CompiledGrouped)]
    if config.is_moe or config.query_rank is not None or len(grouped) != config.num_layers:
        return None
    weights: list[Tensor] = []
    formats: list[int] = []
    for index, sublayer in enumerate(grouped):
        shards = [local.shards.dense(index, shard) for shard in range(config.num_ffn_shards)]
        four = sublayer.projections
        projections = (four.query, four.key, four.value, four.output)
        attention = [weight_of(projection.matrix) for projection in projections]
        ffn = [weight_of(m) for shard in shards for m in (shard.gate, shard.up, shard.down)]
        weights += [sublayer.norm, *(weight.data for weight in attention), sublayer.ffn_norm]
        weights += [weight.data for weight in ffn]
        formats += [int(weight.format) for weight in (*attention, *ffn)]
    return DecoderLayers(
        weights=weights,
        formats=formats,
        biases=[each.bias for each in grouped if each.bias is not None],
        head_norms=[norm for each in grouped for norm in each.projections.head_norms or ()],
        num_heads=config.num_heads,
        ffn_size=config.ffn_size // config.num_ffn_shards,
        eps=config.rms_norm_eps,
        num_shards=config.num_ffn_shards,
    )
