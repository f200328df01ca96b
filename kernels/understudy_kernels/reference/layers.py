"""All layers of a dense decoder: the single operators, one after another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from understudy_kernels.reference.attention import paged_attention, rotate_and_cache
from understudy_kernels.reference.checks import check_floats, require
from understudy_kernels.reference.ffn import swiglu
from understudy_kernels.reference.linear import (
    add_rms_norm,
    check_formats,
    normed_linears,
    quantised_linear,
)

ATTENTION_WEIGHTS = 6
ATTENTION_FORMATS = 4
SHARD_WEIGHTS = 3


@dataclass(frozen=True, slots=True)
class Operators:
    """The single operators that a layer is made of, on whatever device."""

    normed_linears: Callable[..., Tensor]
    rotate_and_cache: Callable[..., Tensor]
    paged_attention: Callable[..., Tensor]
    quantised_linear: Callable[..., Tensor]
    add_rms_norm: Callable[..., tuple[Tensor, Tensor]]
    swiglu: Callable[..., Tensor]


def decoder_layers(
    hidden: Tensor,
    weights: Sequence[Tensor],
    formats: Sequence[int],
    biases: Sequence[Tensor] | None,
    head_norms: Sequence[Tensor] | None,
    num_heads: int,
    ffn_size: int,
    num_shards: int,
    eps: float,
    cosine: Tensor,
    sine: Tensor,
    storage: Tensor,
    scales: Tensor | None,
    slots: Tensor,
    tables: Tensor,
    sequences: Tensor,
    lengths: Tensor,
    scale: float,
    exact: bool,
    operators: Operators | None = None,
) -> Tensor:
    """Return `hidden` (T, D) after all layers, whose keys and values are stored on the way.

    Weights of a layer: attention norm, packed q, k, v, o, FFN norm, packed gate, up, down of each
    of `num_shards` slices of `ffn_size`, whose sums are added in order; formats are the packed
    ones'. `storage` is (blocks, layers, 2, block_size, kv_heads, dim), `scales` the same without
    dim beside int8. `operators` are the reference's own unless others are given.
    """
    use = REFERENCE_OPERATORS if operators is None else operators
    check_floats(hidden, 2, "hidden")
    biases, head_norms = biases or (), head_norms or ()
    num_layers = _num_layers(weights, formats, biases, head_norms, num_shards, ffn_size)
    require(
        storage.dim() == 6 and storage.shape[1] >= num_layers and storage.shape[2] == 2,
        "storage must be (blocks, layers, 2, block size, kv heads, dim), it is"
        f" {list(storage.shape)}.",
    )
    num_kv, dim = storage.shape[4], storage.shape[5]
    require(
        num_heads > 0 and num_heads % num_kv == 0 and dim % 2 == 0 and dim <= 1024,
        f"{num_heads} heads of {dim} do not fit {num_kv} kv heads.",
    )
    widths = (num_heads * dim, num_kv * dim, num_kv * dim)
    num_weights = ATTENTION_WEIGHTS + SHARD_WEIGHTS * num_shards
    num_formats = ATTENTION_FORMATS + SHARD_WEIGHTS * num_shards
    for layer in range(num_layers):
        parts = weights[layer * num_weights : (layer + 1) * num_weights]
        kinds = formats[layer * num_formats : (layer + 1) * num_formats]
        cache = storage[:, layer, 0], storage[:, layer, 1]
        cache_scales: tuple[Tensor | None, Tensor | None] = (None, None)
        if scales is not None:
            cache_scales = (scales[:, layer, 0], scales[:, layer, 1])
        bias = biases[layer] if biases else None
        norms: tuple[Tensor | None, Tensor | None] = (None, None)
        if head_norms:
            norms = (head_norms[2 * layer], head_norms[2 * layer + 1])
        projected = use.normed_linears(
            hidden, parts[0], eps, parts[1:4], kinds[:3], widths, bias, exact
        )
        query = use.rotate_and_cache(
            projected, cosine, sine, *cache, *cache_scales, slots, num_heads, *norms, eps
        )
        attended = use.paged_attention(
            query, *cache, *cache_scales, tables, sequences, lengths, scale
        ).flatten(1)
        size = hidden.shape[1]
        output = use.quantised_linear(attended, parts[4], kinds[3], size, None, None, exact)
        normed, hidden = use.add_rms_norm(output, hidden, parts[5], eps)
        shards = parts[ATTENTION_WEIGHTS:], kinds[ATTENTION_FORMATS:]
        hidden = hidden + _feed_forward(use, normed, *shards, ffn_size, exact)
    return hidden if num_layers else torch.clone(hidden)


def _num_layers(
    weights: Sequence[Tensor],
    formats: Sequence[int],
    biases: Sequence[Tensor],
    head_norms: Sequence[Tensor],
    num_shards: int,
    ffn_size: int,
) -> int:
    require(
        0 < num_shards <= 1024 and ffn_size > 0,
        f"a feed-forward of {num_shards} shards of {ffn_size} cannot be.",
    )
    num_weights = ATTENTION_WEIGHTS + SHARD_WEIGHTS * num_shards
    num_layers = len(weights) // num_weights
    check_formats(formats, num_layers * (ATTENTION_FORMATS + SHARD_WEIGHTS * num_shards))
    require(
        len(weights) % num_weights == 0
        and len(biases) in (0, num_layers)
        and len(head_norms) in (0, 2 * num_layers),
        f"weights must be {num_weights} a layer, biases none or one, head norms none or two.",
    )
    return num_layers


def _feed_forward(
    use: Operators,
    normed: Tensor,
    weights: Sequence[Tensor],
    formats: Sequence[int],
    ffn_size: int,
    exact: bool,
) -> Tensor:
    """Return the sum over the shards of a feed-forward, in their order."""
    partials = []
    for start in range(0, len(weights), SHARD_WEIGHTS):
        gate, up, down = weights[start : start + SHARD_WEIGHTS]
        kinds = formats[start : start + SHARD_WEIGHTS]
        partials.append(use.swiglu(normed, gate, up, down, kinds, ffn_size, exact))
    total = partials[0]
    for partial in partials[1:]:
        total = total + partial
    return total


REFERENCE_OPERATORS = Operators(
    normed_linears, rotate_and_cache, paged_attention, quantised_linear, add_rms_norm, swiglu
)
