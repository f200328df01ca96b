"""The forward pass of decoders with grouped attention, through compiled operators.

A dense decoder without adapters is one call for all layers. Where an adapter, a gate or another
worker takes part in a layer, the same operators run one by one, in the same order and to the same
bits: a row does not notice which of the two ways its step took.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from understudy.errors import Internal
from understudy.model.adapter import AdapterBatch
from understudy.model.config import ModelConfig
from understudy.model.feed_forward import FeedForward
from understudy.model.ffn import Experts, LocalExperts
from understudy.model.kv_planes import Plane
from understudy.model.linear import Linear, Weights, linear, matrix, vector
from understudy.model.packed import weight_of
from understudy.model.paged import PagedKv, PagedSequence
from understudy.model.rope import Angles, AngleTable, Rotary
from understudy.model.sampling import Sampled, SamplingParams, uniform
from understudy.model.shapes import layer_prefix
from understudy_kernels import CacheView, DecoderLayers, Rows, ops

MAX_HEAD_DIM = 1024


def is_compilable(config: ModelConfig) -> bool:
    """Whether the attention of this model is one that the operators know."""
    is_grouped = config.latent is None and config.attentions_per_layer == 1
    return is_grouped and config.head_dim % 2 == 0 and config.head_dim <= MAX_HEAD_DIM


@dataclass(frozen=True, slots=True)
class _Step:
    """What the rows of a step see, and where their keys and values go."""

    angles: Angles  # (T, head_dim / 2) each
    slots: Tensor
    rows: Rows


@dataclass(frozen=True, slots=True)
class _Layer:
    norm: Tensor
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    bias: Tensor | None  # of query, key and value, side by side
    head_norms: tuple[Tensor, Tensor] | None
    query_up: tuple[Tensor, Linear] | None  # norm and second factor of factorised queries
    ffn_norm: Tensor
    feed_forward: FeedForward


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
        self._layers = [_layer(config, weights, index, used) for index in range(config.num_layers)]
        self._whole = None
        if local is not None and not config.is_moe and config.query_rank is None:
            self._whole = _whole(config, self._layers, local)
        self._angles = AngleTable(Rotary(config))
        self._scale = config.head_dim**-0.5
        self._embedding = matrix(weights, "model.embed_tokens.weight")
        self._norm = vector(weights, "model.norm.weight")
        is_factorised = config.embedding_size is not None
        self._up = matrix(weights, "model.embed_up_proj.weight") if is_factorised else None
        self._down = matrix(weights, "model.embed_down_proj.weight") if is_factorised else None
        is_tied = config.tie_embeddings
        self._head = self._embedding if is_tied else matrix(weights, "lm_head.weight")
        self._stacked: tuple[PagedKv, Plane] | None = None

    def advance(
        self,
        tokens: Tensor,
        kv: PagedKv,
        sequences: Sequence[PagedSequence],
        adapter: AdapterBatch | None = None,
    ) -> Tensor:
        """Return the final-normed hidden states (T, D) of the new `tokens` (T,) of `sequences`."""
        step, plane = self._step(kv, sequences), self._plane(kv)
        hidden = self._embedding.embed(tokens)
        if self._up is not None:
            hidden = self._up.multiply(hidden)
        if self._whole is not None and adapter is None:
            hidden = ops.decoder_layers(
                hidden,
                self._whole,
                step.angles,
                plane.values,
                step.slots,
                step.rows,
                self._scale,
                scales=plane.scales,
                exact=self._is_exact,
            )
        else:
            for index, layer in enumerate(self._layers):
                hidden = self._advance_layer(index, layer, hidden, step, plane, adapter)
        return self._normalised(hidden, self._norm)

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
        """Choose a token for each row of `logits`, as `understudy.model.sampling.sample` does."""
        if not len(params) == len(seeds) == len(positions) == logits.shape[0]:
            raise Internal(
                f"Sampling got {logits.shape[0]} rows of logits, {len(params)} sequences."
            )
        drawn = map(uniform, seeds, positions)
        uniforms = [u if p.temperature > 0 else 0.0 for u, p in zip(drawn, params, strict=True)]
        tokens, logprobs, margins, losses = ops.sample_tokens(
            logits.contiguous(),
            mask,
            torch.tensor([p.temperature for p in params], dtype=torch.float64),
            torch.tensor([p.top_k for p in params]),
            torch.tensor([p.top_p for p in params], dtype=torch.float64),
            torch.tensor(uniforms, dtype=torch.float64),
        )
        return Sampled(tokens, logprobs, margins, losses)

    def _advance_layer(
        self,
        index: int,
        layer: _Layer,
        hidden: Tensor,
        step: _Step,
        plane: Plane,
        adapter: AdapterBatch | None,
    ) -> Tensor:
        cache = _view(plane, index)
        of_query, of_key = (None, None) if layer.head_norms is None else layer.head_norms
        query = ops.rotate_and_cache(
            self._project(index, layer, hidden, adapter),
            step.angles,
            cache,
            step.slots,
            self.config.num_heads,
            query_norm=of_query,
            key_norm=of_key,
            eps=self.config.rms_norm_eps,
        )
        attended = ops.paged_attention(query, cache, step.rows, self._scale).flatten(1)
        output = layer.output(attended)
        if adapter is not None:
            output = adapter.apply(index, "o_proj", attended, output)
        eps = self.config.rms_norm_eps
        normed, hidden = ops.add_rms_norm(output, hidden, layer.ffn_norm, eps)
        return hidden + layer.feed_forward.submit(normed).wait()

    def _project(
        self, index: int, layer: _Layer, hidden: Tensor, adapter: AdapterBatch | None
    ) -> Tensor:
        """Return query, key and value rows side by side."""
        projections = (("q_proj", layer.query), ("k_proj", layer.key), ("v_proj", layer.value))
        if adapter is not None or layer.query_up is not None:
            normed = self._normalised(hidden, layer.norm)
            rows = [projection(normed) for _, projection in projections]
            if adapter is not None:
                named = zip(projections, rows, strict=True)
                rows = [adapter.apply(index, name, normed, row) for (name, _), row in named]
            if layer.query_up is not None:
                norm, up = layer.query_up
                rows[0] = up(self._normalised(rows[0], norm))
            return torch.cat(rows, dim=1)
        return ops.normed_linears(
            hidden,
            layer.norm,
            self.config.rms_norm_eps,
            [weight_of(projection.matrix) for _, projection in projections],
            bias=layer.bias,
            exact=self._is_exact,
        )

    def _normalised(self, hidden: Tensor, weight: Tensor) -> Tensor:
        zeros = torch.zeros_like(hidden)
        return ops.add_rms_norm(hidden, zeros, weight, self.config.rms_norm_eps)[0]

    def _plane(self, kv: PagedKv) -> Plane:
        if self._stacked is None or self._stacked[0] is not kv:
            self._stacked = kv, kv.stacked()
        return self._stacked[1]

    def _step(self, kv: PagedKv, sequences: Sequence[PagedSequence]) -> _Step:
        size, ends = kv.block_size, [sequence.end for sequence in sequences]
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
        angles = self._angles.rows(torch.from_numpy(positions), max(ends) - 1)
        rows = Rows(
            torch.from_numpy(tables),
            torch.from_numpy(owners),
            torch.from_numpy((positions + 1).astype(np.int32)),
        )
        return _Step(angles, torch.from_numpy(slots), rows)


def _view(plane: Plane, layer: int) -> CacheView:
    keys, values = plane.values[:, layer].unbind(1)
    if plane.scales is None:
        return CacheView(keys, values)
    of_keys, of_values = plane.scales[:, layer].unbind(1)
    return CacheView(keys, values, of_keys, of_values)


def _layer(config: ModelConfig, weights: Weights, index: int, experts: Experts) -> _Layer:
    prefix, _ = layer_prefix(config, index)
    query, key, value = (linear(weights, f"{prefix}.self_attn.{name}_proj") for name in "qkv")
    biases = [each.bias for each in (query, key, value) if each.bias is not None]
    norms = None
    if config.has_qk_norm:
        of_query, of_key = (
            vector(weights, f"{prefix}.self_attn.{name}_norm.weight") for name in "qk"
        )
        norms = of_query, of_key
    query_up = None
    if config.query_rank is not None:
        inner = vector(weights, f"{prefix}.self_attn.inter_norm.weight")
        query_up = inner, linear(weights, f"{prefix}.self_attn.wq")
    return _Layer(
        norm=vector(weights, f"{prefix}.input_layernorm.weight"),
        query=query,
        key=key,
        value=value,
        output=linear(weights, f"{prefix}.self_attn.o_proj"),
        bias=torch.cat(biases) if biases else None,
        head_norms=norms,
        query_up=query_up,
        ffn_norm=vector(weights, f"{prefix}.post_attention_layernorm.weight"),
        feed_forward=FeedForward(config, weights, index, experts),
    )


def _whole(config: ModelConfig, layers: Sequence[_Layer], local: LocalExperts) -> DecoderLayers:
    """Return all layers as the one operator takes them."""
    weights: list[Tensor] = []
    formats: list[int] = []
    for index, layer in enumerate(layers):
        shards = [local.shards.dense(index, shard) for shard in range(config.num_ffn_shards)]
        projections = (layer.query, layer.key, layer.value, layer.output)
        attention = [weight_of(projection.matrix) for projection in projections]
        ffn = [weight_of(m) for shard in shards for m in (shard.gate, shard.up, shard.down)]
        weights += [layer.norm, *(weight.data for weight in attention), layer.ffn_norm]
        weights += [weight.data for weight in ffn]
        formats += [int(weight.format) for weight in (*attention, *ffn)]
    return DecoderLayers(
        weights=weights,
        formats=formats,
        biases=[layer.bias for layer in layers if layer.bias is not None],
        head_norms=[norm for layer in layers for norm in layer.head_norms or ()],
        num_heads=config.num_heads,
        ffn_size=config.ffn_size // config.num_ffn_shards,
        eps=config.rms_norm_eps,
        num_shards=config.num_ffn_shards,
    )
