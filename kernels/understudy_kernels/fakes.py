"""The shapes of results, for torch.export and compilation: no data is touched."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor


def _linear(hidden: Tensor, packed: Tensor, format: int, num_out: int, *_: object) -> Tensor:  # noqa: A002, ARG001
    return hidden.new_empty((hidden.shape[0], num_out))


def _embedding(ids: Tensor, packed: Tensor, format: int, num_out: int, num_in: int) -> Tensor:  # noqa: A002, ARG001
    return ids.new_empty((ids.shape[0], num_in), dtype=torch.float32)


def _like_hidden(hidden: Tensor, *_: object) -> Tensor:
    return torch.empty_like(hidden)


def _two_like_hidden(hidden: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(hidden), torch.empty_like(hidden)


def _linears(
    hidden: Tensor,
    weight: Tensor,  # noqa: ARG001
    eps: float,  # noqa: ARG001
    packed: Sequence[Tensor],  # noqa: ARG001
    formats: Sequence[int],  # noqa: ARG001
    num_outs: Sequence[int],
    *_: object,
) -> Tensor:
    return hidden.new_empty((hidden.shape[0], sum(num_outs)))


def _query(
    projected: Tensor,
    cosine: Tensor,  # noqa: ARG001
    sine: Tensor,  # noqa: ARG001
    keys: Tensor,
    values: Tensor,  # noqa: ARG001
    key_scales: Tensor | None,  # noqa: ARG001
    value_scales: Tensor | None,  # noqa: ARG001
    slots: Tensor,  # noqa: ARG001
    num_heads: int,
    *_: object,
) -> Tensor:
    return projected.new_empty((projected.shape[0], num_heads, keys.shape[3]))


def _attended(query: Tensor, keys: Tensor, values: Tensor, *_: object) -> Tensor:  # noqa: ARG001
    return query.new_empty((query.shape[0], query.shape[1], values.shape[3]))


def _rotated(query: Tensor, *others: object) -> Tensor:
    num_heads = others[8]
    assert isinstance(num_heads, int)
    return query.new_empty((query.shape[0], num_heads, query.shape[1] // num_heads))


def _lifted(query: Tensor, up: Tensor, format: int, value_dim: int, *_: object) -> Tensor:  # noqa: A002, ARG001
    return query.new_empty((query.shape[0], query.shape[1], value_dim))


def _sampled(logits: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_rows = logits.shape[0]
    tokens = logits.new_empty((num_rows,), dtype=torch.int64)
    first, second, third = (logits.new_empty((num_rows,)) for _ in range(3))
    return tokens, first, second, third


FAKES: Final[Mapping[str, Callable[..., object]]] = MappingProxyType(
    {
        "quantised_linear": _linear,
        "quantised_embedding": _embedding,
        "add_rms_norm": _two_like_hidden,
        "normed_linears": _linears,
        "swiglu": _like_hidden,
        "normed_swiglu": _like_hidden,
        "swiglu_experts": _like_hidden,
        "rotate_and_cache": _query,
        "paged_attention": _attended,
        "rotate_and_cache_latent": _rotated,
        "latent_attention": _lifted,
        "sample_tokens": _sampled,
        "decoder_layers": _like_hidden,
    }
)
