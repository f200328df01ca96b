"""Compiled operators for decoders with quantised weights, each beside a reference in plain torch.

`load()` registers them under `torch.ops.understudy` (fakes for torch.export included); `ops` calls
them with types; `packing` brings weights into the kernels' layout. Nothing is compiled, probed or
registered at import.

    quantised_linear     hidden (T, K) -> (T, N), bias and residual fused in
    quantised_embedding  ids (T,) -> (T, D) from a packed (and perhaps tied) table
    add_rms_norm         hidden, residual (T, D) -> norm of the sum, the sum
    normed_linears       hidden (T, D) -> q, k, v side by side (T, N), normed and quantised once
    swiglu               hidden (T, D) -> (T, D); normed_swiglu adds norm before and residual after
    swiglu_experts       hidden (T, D), ids and gates (T, K) -> gated sum over the experts held here
    rotate_and_cache     projected (T, N) -> queries (T, H, dim); keys and values go to their slots
    paged_attention      query (T, H, dim) -> (T, H, value dim) over block tables
    rotate_and_cache_latent  query, compressed -> queries (T, H, dim); latents go to their slots
    latent_attention     query (T, H, dim) -> (T, H, value dim) over latents of block tables
    sample_tokens        logits (B, V) and a uniform number a row -> tokens and evidence (B,)
    decoder_layers       hidden (T, D) -> (T, D) through every layer in one call

Invariants. Activations are float32 and contiguous. T may be 0. `exact` multiplies float32 by
float32; otherwise activations are rounded to int8 per block of 32 for quantised weights (16- and
32-bit weights always compute in float32). On the CPU, in both modes, a row's result depends neither
on the other rows nor on the number of threads, to the last bit. Caches are written only by
`rotate_and_cache`, `rotate_and_cache_latent` and `decoder_layers`, at the slots given. Refused
input raises Internal and leaves everything as it was.
"""

from understudy_kernels.formats import (
    CacheView,
    DecoderLayers,
    Format,
    LatentView,
    PackedExperts,
    PackedFfn,
    PackedHeads,
    PackedLinear,
    Rows,
)
from understudy_kernels.loading import Loaded, load

__all__ = [
    "CacheView",
    "DecoderLayers",
    "Format",
    "LatentView",
    "Loaded",
    "PackedExperts",
    "PackedFfn",
    "PackedHeads",
    "PackedLinear",
    "Rows",
    "load",
]
