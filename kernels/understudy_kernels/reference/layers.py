"""All layers of a dense decoder: the single operators, one after another."""

from collections.abc import Sequence

import torch
from torch import Tensor

from understudy_kernels.reference.attention import paged_attention, rotate_and_cache
from understudy_kernels.reference.checks import check_floats, require
from understudy_kernels.reference.ffn import normed_swiglu
from understudy_kernels.reference.linear import check_formats, normed_linears, quantised_linear

LAYER_WEIGHTS = 9
LAYER_FORMATS = 7


def decoder_layers(
    hidden: Tensor,
    weights: Sequence[Tensor],
    formats: Sequence[int],
    biases: Sequence[Tensor],
    head_norms: Sequence[Tensor],
    num_heads: int,
    ffn_size: int,
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
) -> Tensor:
    """Return `hidden` (T, D) after all layers, whose keys and values are stored on the way.

    Weights are nine a layer: attention norm, packed q, k, v, o, FFN norm, packed gate, up, down;
    formats are those of the seven packed. `storage` is (blocks, layers, 2, block_size, kv_heads,
    dim), `scales` the same without dim beside int8.
    """
    check_floats(hidden, 2, "hidden")
    num_layers = len(weights) // LAYER_WEIGHTS
    check_formats(formats, num_layers * LAYER_FORMATS)
    require(
        len(weights) % LAYER_WEIGHTS == 0
        and len(biases) in (0, num_layers)
        and len(head_norms) in (0, 2 * num_layers),
        "weights must be nine a layer, biases none or one, head norms none or two.",
    )
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
    for layer in range(num_layers):
        parts = weights[layer * LAYER_WEIGHTS : (layer + 1) * LAYER_WEIGHTS]
        kinds = formats[layer * LAYER_FORMATS : (layer + 1) * LAYER_FORMATS]
        cache = storage[:, layer, 0], storage[:, layer, 1]
        cache_scales: tuple[Tensor | None, Tensor | None] = (None, None)
        if scales is not None:
            cache_scales = (scales[:, layer, 0], scales[:, layer, 1])
        bias = biases[layer] if biases else None
        norms: tuple[Tensor | None, Tensor | None] = (None, None)
        if head_norms:
            norms = (head_norms[2 * layer], head_norms[2 * layer + 1])
        projected = normed_linears(
            hidden, parts[0], eps, parts[1:4], kinds[:3], widths, bias, exact
        )
        query = rotate_and_cache(
            projected, cosine, sine, *cache, *cache_scales, slots, num_heads, *norms, eps
        )
        attended = paged_attention(
            query, *cache, *cache_scales, tables, sequences, lengths, scale
        ).flatten(1)
        size = hidden.shape[1]
        hidden = quantised_linear(attended, parts[4], kinds[3], size, None, hidden, exact)
        ffn = (parts[6], parts[7], parts[8], kinds[4:], ffn_size, exact)
        hidden = normed_swiglu(hidden, parts[5], eps, *ffn)
    return hidden if num_layers else torch.clone(hidden)
