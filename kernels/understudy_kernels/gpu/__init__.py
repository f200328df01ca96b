"""Triton-language versions of the operators for tensors on a GPU. Never run on a GPU so far.

They read the same packed layout. `exact` multiplies in IEEE float32, otherwise in TF32; sums of a
row follow its own tiles only, but are not promised to equal the CPU's. What has no kernel here
(rotation, sampling, whole layers) runs as the reference's torch operators on the device. Imported
by `load()` alone, and only where a GPU is present.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from understudy_kernels.gpu.attention import paged_attention
from understudy_kernels.gpu.ffn import normed_swiglu, swiglu, swiglu_experts
from understudy_kernels.gpu.latent import latent_attention
from understudy_kernels.gpu.linear import normed_linears, quantised_linear
from understudy_kernels.gpu.norm import add_rms_norm

GPU: Final[Mapping[str, Callable[..., object]]] = MappingProxyType(
    {
        "quantised_linear": quantised_linear,
        "normed_linears": normed_linears,
        "add_rms_norm": add_rms_norm,
        "swiglu": swiglu,
        "normed_swiglu": normed_swiglu,
        "swiglu_experts": swiglu_experts,
        "paged_attention": paged_attention,
        "latent_attention": latent_attention,
    }
)
