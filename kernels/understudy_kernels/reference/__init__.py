"""The operators in plain torch: what they mean, and what runs where nothing can be compiled.

Written to be read, one idea a line; weights are expanded one matrix at a time and dropped again.
Results agree with the compiled versions within the rounding of float32, and refuse the same input.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from understudy_kernels.reference.attention import paged_attention, rotate_and_cache
from understudy_kernels.reference.ffn import normed_swiglu, swiglu, swiglu_experts
from understudy_kernels.reference.latent import latent_attention, rotate_and_cache_latent
from understudy_kernels.reference.layers import decoder_layers
from understudy_kernels.reference.linear import (
    add_rms_norm,
    normed_linears,
    quantised_embedding,
    quantised_linear,
)
from understudy_kernels.reference.sampling import sample_tokens

REFERENCE: Final[Mapping[str, Callable[..., object]]] = MappingProxyType(
    {
        operator.__name__: operator
        for operator in (
            quantised_linear,
            quantised_embedding,
            add_rms_norm,
            normed_linears,
            swiglu,
            normed_swiglu,
            swiglu_experts,
            rotate_and_cache,
            paged_attention,
            rotate_and_cache_latent,
            latent_attention,
            sample_tokens,
            decoder_layers,
        )
    }
)
