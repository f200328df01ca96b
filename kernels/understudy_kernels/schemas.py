"""The operators' schemas: what C++, the reference and the GPU versions register."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

NAMESPACE: Final = "understudy"

SCHEMAS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "quantised_linear": "(Tensor hidden, Tensor packed, int format, int num_out, Tensor? bias,"
        " Tensor? residual, bool exact) -> Tensor",
        "quantised_embedding": "(Tensor ids, Tensor packed, int format, int num_out, int num_in)"
        " -> Tensor",
        "add_rms_norm": "(Tensor hidden, Tensor residual, Tensor weight, float eps)"
        " -> (Tensor, Tensor)",
        "normed_linears": "(Tensor hidden, Tensor weight, float eps, Tensor[] packed,"
        " int[] formats, int[] num_outs, Tensor? bias, bool exact) -> Tensor",
        "swiglu": "(Tensor hidden, Tensor gate, Tensor up, Tensor down, int[] formats,"
        " int ffn_size, bool exact) -> Tensor",
        "normed_swiglu": "(Tensor hidden, Tensor weight, float eps, Tensor gate, Tensor up,"
        " Tensor down, int[] formats, int ffn_size, bool exact) -> Tensor",
        "swiglu_experts": "(Tensor hidden, Tensor ids, Tensor gates, Tensor gate, Tensor up,"
        " Tensor down, int[] formats, int ffn_size, int first_expert, bool exact) -> Tensor",
        "rotate_and_cache": "(Tensor projected, Tensor cosine, Tensor sine, Tensor(a!) keys,"
        " Tensor(b!) values, Tensor(c!)? key_scales, Tensor(d!)? value_scales, Tensor slots,"
        " int num_heads, Tensor? query_norm, Tensor? key_norm, float eps) -> Tensor",
        "paged_attention": "(Tensor query, Tensor keys, Tensor values, Tensor? key_scales,"
        " Tensor? value_scales, Tensor tables, Tensor sequences, Tensor lengths, float scale)"
        " -> Tensor",
        "rotate_and_cache_latent": "(Tensor query, Tensor compressed, Tensor cosine, Tensor sine,"
        " Tensor(a!) rope_keys, Tensor(b!) latents, Tensor(c!)? rope_scales,"
        " Tensor(d!)? latent_scales, Tensor slots, int num_heads, Tensor norm, float eps,"
        " float query_scale, float latent_scale, bool interleaved) -> Tensor",
        "latent_attention": "(Tensor query, Tensor up, int format, int value_dim,"
        " Tensor rope_keys, Tensor latents, Tensor? rope_scales, Tensor? latent_scales,"
        " Tensor tables, Tensor sequences, Tensor lengths, float scale) -> Tensor",
        "sample_tokens": "(Tensor logits, Tensor? mask, Tensor temperatures, Tensor top_ks,"
        " Tensor top_ps, Tensor uniforms) -> (Tensor, Tensor, Tensor, Tensor)",
        "decoder_layers": "(Tensor hidden, Tensor[] weights, int[] formats, Tensor[]? biases,"
        " Tensor[]? head_norms, int num_heads, int ffn_size, int num_shards, float eps,"
        " Tensor cosine, Tensor sine, Tensor(a!) storage, Tensor(b!)? scales, Tensor slots,"
        " Tensor tables, Tensor sequences, Tensor lengths, float scale, bool exact) -> Tensor",
    }
)
