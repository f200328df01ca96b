"""The operators as Python calls them. `load()` must have run; shapes are in the package docstring.

Input that an operator refuses is a bug of the caller: Internal with the operator's sentence.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from understudy.errors import Internal
from understudy_kernels.formats import (
    CacheView,
    DecoderLayers,
    LatentView,
    PackedExperts,
    PackedFfn,
    PackedHeads,
    PackedLinear,
    Rows,
)


class _Refusals:
    """Turns an operator's ValueError into Internal; cheaper than a generator on a hot path."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, ValueError):
            raise Internal(f"A kernel refused its input: {str(error).splitlines()[0]}") from error


_REFUSALS = _Refusals()


def linear(
    hidden: Tensor,
    weight: PackedLinear,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    exact: bool = False,
) -> Tensor:
    """Return hidden (T, K) @ weight^T (+ bias (N,)) (+ residual (T, N)): (T, N)."""
    with _REFUSALS:
        result: Tensor = torch.ops.understudy.quantised_linear.default(
            hidden, weight.data, weight.format, weight.num_out, bias, residual, exact
        )
    return result


def embedding(ids: Tensor, table: PackedLinear) -> Tensor:
    """Return rows `ids` (T,) int64 of the table as float32 (T, num_in)."""
    with _REFUSALS:
        result: Tensor = torch.ops.understudy.quantised_embedding.default(
            ids, table.data, table.format, table.num_out, table.num_in
        )
    return result


def add_rms_norm(
    hidden: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the norm of hidden + residual, and hidden + residual, both (T, D)."""
    with _REFUSALS:
        result: tuple[Tensor, Tensor] = torch.ops.understudy.add_rms_norm.default(
            hidden, residual, weight, eps
        )
    return result


def normed_linears(
    hidden: Tensor,
    norm: Tensor,
    eps: float,
    weights: Sequence[PackedLinear],
    *,
    bias: Tensor | None = None,
    exact: bool = False,
) -> Tensor:
    """Return several layers (q, k, v) of the normed hidden side by side: (T, sum of num_out)."""
    with _REFUSALS:
        result: Tensor = torch.ops.understudy.normed_linears.default(
            hidden,
            norm,
            eps,
            [weight.data for weight in weights],
            [weight.format for weight in weights],
            [weight.num_out for weight in weights],
            bias,
            exact,
        )
    return result


def swiglu(hidden: Tensor, ffn: PackedFfn, *, exact: bool = False) -> Tensor:
    """Return down(silu(gate(hidden)) * up(hidden)): (T, D)."""
    with _REFUSALS:
        result: Tensor = torch.ops.understudy.swiglu.default(
            hidden, ffn.gate.data, ffn.up.data, ffn.down.data, ffn.formats, ffn.gate.num_out, exact
        )
    return result


def normed_swiglu(
    hidden: Tensor, norm: Tensor, eps: float, ffn: PackedFfn, *, exact: bool = False
) -> Tensor:
    """Return hidden + swiglu(rms_norm(hidden)): (T, D)."""
    parts = (ffn.gate.data, ffn.up.data, ffn.down.data, ffn.formats, ffn.gate.num_out)
    with _REFUSALS:
        result: Tensor = torch.ops.understudy.normed_swiglu.default(
            hidden, norm, eps, *parts, exact
        )
    return result


def swiglu_experts(
    hidden: Tensor,
    ids: Tensor,
    gates: Tensor,
    experts: PackedExperts,
    *,
    first_expert: int = 0,
    exact: bool = False,
) -> Tensor:
    """Return the gated sum over the experts held, in ascending id: (T, D).

    `ids` (T, K) int64, `gates` (T, K) float32; ids outside the stack and choices of weight 0 add
    nothing.
    """
    stacks = (experts.gate, experts.up, experts.down, list(experts.formats), experts.ffn_size)
    with _REFUSALS:
        result: Tensor = torch.ops.understudy.swiglu_experts.default(
            hidden, ids, gates, *stacks, first_expert, exact
        )
    return result


def rotate_and_cache(
    projected: Tensor,
    angles: tuple[Tensor, Tensor],
    cache: CacheView,
    slots: Tensor,
    num_heads: int,
    *,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Store rotated keys and values of `projected` at `slots` (T,); return queries (T, H, dim).

    `angles` are cosine and sine (T, dim / 2); a slot is block * block_size + token.
    """
    parts = (cache.keys, cache.values, cache.key_scales, cache.value_scales)
    with _REFUSALS:
        result: Tensor = torch.ops.understudy.rotate_and_cache.default(
            projected, *angles, *parts, slots, num_heads, query_norm, key_norm, eps
        )
    return result


def paged_attention(query: Tensor, cache: CacheView, rows: Rows, scale: float) -> Tensor:
    """Return what each row of `query` (T, H, dim) sees: (T, H, value dim)."""
    parts = (cache.keys, cache.values, cache.key_scales, cache.value_scales)
    with _REFUSALS:
        result: Tensor = torch.ops.understudy.paged_attention.default(
            query, *parts, rows.tables, rows.sequences, rows.lengths, scale
        )
    return result


def rotate_and_cache_latent(
    query: Tensor,
    compressed: Tensor,
    angles: tuple[Tensor, Tensor],
    cache: LatentView,
    slots: Tensor,
    num_heads: int,
    norm: Tensor,
    *,
    eps: float,
    query_scale: float = 1.0,
    latent_scale: float = 1.0,
    interleaved: bool = True,
) -> Tensor:
    """Store latent and rotated key of `compressed` at `slots` (T,); return queries (T, H, dim).

    `query` (T, H dim) and `compressed` (T, rank + rope dim) end in what is rotated; `angles` are
    cosine and sine (T, rope dim / 2); the latent is normed.
    """
    parts = (cache.rope_keys, cache.latents, cache.rope_scales, cache.latent_scales)
    scales = (eps, query_scale, latent_scale)
    with _REFUSALS:
        result: Tensor = torch.ops.understudy.rotate_and_cache_latent.default(
            query, compressed, *angles, *parts, slots, num_heads, norm, *scales, interleaved
        )
    return result


def latent_attention(
    query: Tensor, heads: PackedHeads, cache: LatentView, rows: Rows, scale: float
) -> Tensor:
    """Return what each row of `query` (T, H, nope + rope dim) sees: (T, H, value dim)."""
    up, parts = heads.up, (cache.rope_keys, cache.latents, cache.rope_scales, cache.latent_scales)
    with _REFUSALS:
        result: Tensor = torch.ops.understudy.latent_attention.default(
            query,
            up.data,
            up.format,
            heads.value_dim,
            *parts,
            rows.tables,
            rows.sequences,
            rows.lengths,
            scale,
        )
    return result


def sample_tokens(
    logits: Tensor,
    mask: Tensor | None,
    temperatures: Tensor,
    top_ks: Tensor,
    top_ps: Tensor,
    uniforms: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return tokens, log-probabilities, margins and mask losses, all (B,), of logits (B, V)."""
    with _REFUSALS:
        result: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.understudy.sample_tokens.default(
            logits, mask, temperatures, top_ks, top_ps, uniforms
        )
    return result


def decoder_layers(
    hidden: Tensor,
    layers: DecoderLayers,
    angles: tuple[Tensor, Tensor],
    storage: Tensor,
    slots: Tensor,
    rows: Rows,
    scale: float,
    *,
    scales: Tensor | None = None,
    exact: bool = False,
) -> Tensor:
    """Return `hidden` (T, D) after all layers, storing keys and values in `storage` on the way.

    `storage` is (blocks, layers, 2, block_size, kv_heads, dim); `scales` the same without dim.
    """
    optional = (layers.biases or None, layers.head_norms or None)
    weights = (layers.weights, layers.formats, *optional)
    sizes = (layers.num_heads, layers.ffn_size, layers.num_shards, layers.eps)
    tables = (rows.tables, rows.sequences, rows.lengths)
    with _REFUSALS:
        result: Tensor = torch.ops.understudy.decoder_layers.default(
            hidden, *weights, *sizes, *angles, storage, scales, slots, *tables, scale, exact
        )
    return result
