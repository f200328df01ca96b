"""Triton-language versions of the operators for tensors on a GPU. Never run on a GPU so far.

They read the same packed layout. `exact` multiplies in IEEE float32, otherwise in TF32; sums of a
row follow its own tiles only, but are not promised to equal the CPU's. Refusals that would need the
values of tensors are left to the caller, whose host has them, except where the result is waited for
anyway (sampling). Imported by `load()` alone, and only where a GPU is present.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

from understudy_kernels.gpu.attention import paged_attention
from understudy_kernels.gpu.cache import rotate_and_cache
from understudy_kernels.gpu.ffn import normed_swiglu, swiglu, swiglu_experts
from understudy_kernels.gpu.latent import latent_attention
from understudy_kernels.gpu.linear import normed_linears, quantised_embedding, quantised_linear
from understudy_kernels.gpu.norm import add_rms_norm
from understudy_kernels.gpu.sampling import sample_tokens
from understudy_kernels.reference.layers import Operators, decoder_layers

_OPERATORS: Final = Operators(
    normed_linears, rotate_and_cache, paged_attention, quantised_linear, add_rms_norm, swiglu
)

GPU: Final[Mapping[str, Callable[..., object]]] = MappingProxyType(
    {
        "quantised_linear": quantised_linear,
        "quantised_embedding": quantised_embedding,
        "normed_linears": normed_linears,
        "add_rms_norm": add_rms_norm,
        "swiglu": swiglu,
        "normed_swiglu": normed_swiglu,
        "swiglu_experts": swiglu_experts,
        "rotate_and_cache": rotate_and_cache,
        "paged_attention": paged_attention,
        "latent_attention": latent_attention,
        "sample_tokens": sample_tokens,
        "decoder_layers": partial(decoder_layers, operators=_OPERATORS),
    }
)
