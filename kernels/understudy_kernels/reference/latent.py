"""Multi-head latent attention: what is stored of a token, and attention over it."""

import torch
from torch import Tensor
from torch.nn import functional

from understudy_kernels.formats import LANES
from understudy_kernels.reference.attention import (
    check_cache,
    check_slots,
    paged_attention,
    store,
)
from understudy_kernels.reference.checks import check_floats, checked_format, require
from understudy_kernels.reference.unpack import unpack

MAX_LATENT = 4096
MAX_ROPE_DIM = 1024


def rotate_and_cache_latent(
    query: Tensor,
    compressed: Tensor,
    cosine: Tensor,
    sine: Tensor,
    rope_keys: Tensor,
    latents: Tensor,
    rope_scales: Tensor | None,
    latent_scales: Tensor | None,
    slots: Tensor,
    num_heads: int,
    norm: Tensor,
    eps: float,
    query_scale: float,
    latent_scale: float,
    interleaved: bool,
) -> Tensor:
    """Store latent and key of `compressed` (T, rank + rope); return queries (T, H, nope + rope).

    The last rope dimensions of a query's heads and of `compressed` are rotated by cosine and sine
    (T, rope / 2), pairs being neighbours where `interleaved`, else halves apart; the result lies in
    halves. The latent is normed, and both are scaled.
    """
    check_floats(query, 2, "query")
    check_floats(compressed, 2, "compressed")
    check_latents(rope_keys, latents, rope_scales, latent_scales)
    num_rows, rope_dim, rank = query.shape[0], rope_keys.shape[3], latents.shape[3]
    require(
        num_heads > 0
        and query.shape[1] % num_heads == 0
        and query.shape[1] // num_heads > rope_dim,
        f"query {list(query.shape)} cannot be of {num_heads} heads that are rotated by {rope_dim}.",
    )
    require(
        compressed.shape == (num_rows, rank + rope_dim),
        f"compressed must be ({num_rows}, {rank + rope_dim}), it is {list(compressed.shape)}.",
    )
    for angle in (cosine, sine):
        check_floats(angle, 2, "cosine and sine")
        require(
            angle.shape == (num_rows, rope_dim // 2),
            f"cosine and sine must be ({num_rows}, {rope_dim // 2}), they are {list(angle.shape)}.",
        )
    check_slots(slots, rope_keys, num_rows)
    check_floats(norm, 1, "norm")
    require(norm.numel() == rank, f"norm must have {rank} values, it has {norm.numel()}.")
    latent, key = compressed.split((rank, rope_dim), dim=1)
    latent = functional.rms_norm(latent, (rank,), norm, eps) * latent_scale
    blocks, tokens = slots // rope_keys.shape[1], slots % rope_keys.shape[1]
    rotated = _rotate(key[:, None], cosine, sine, interleaved)
    store(latents, latent_scales, blocks, tokens, latent[:, None])
    store(rope_keys, rope_scales, blocks, tokens, rotated)
    heads = query.view(num_rows, num_heads, -1) * query_scale
    nope, rope = heads.split((heads.shape[2] - rope_dim, rope_dim), dim=2)
    return torch.cat((nope, _rotate(rope, cosine, sine, interleaved)), dim=2)


def latent_attention(
    query: Tensor,
    up: Tensor,
    format: int,  # noqa: A002
    value_dim: int,
    rope_keys: Tensor,
    latents: Tensor,
    rope_scales: Tensor | None,
    latent_scales: Tensor | None,
    tables: Tensor,
    sequences: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    """Return softmax(scale * query . keys) values for each row: (T, H, value_dim).

    Keys of a head are its rows of `up` times the latent, beside the rotated key; values are its
    other rows times the latent. `up` has of each head the rows of keys, then those of values, both
    filled up to a multiple of 16; which tokens a row sees is told as to `paged_attention`.
    """
    check_floats(query, 3, "query")
    check_latents(rope_keys, latents, rope_scales, latent_scales)
    rope_dim = rope_keys.shape[3]
    key_up, value_up = head_weights(
        up, format, query.shape[1], query.shape[2] - rope_dim, value_dim, latents.shape[3]
    )
    nope, rope = query.split((query.shape[2] - rope_dim, rope_dim), dim=2)
    absorbed = torch.cat((torch.einsum("thn,hnr->thr", nope, key_up), rope), dim=2)
    keys = torch.cat((read(latents, latent_scales), read(rope_keys, rope_scales)), dim=3)
    values = keys[..., : latents.shape[3]]
    rows = (tables, sequences, lengths)
    seen = paged_attention(absorbed.contiguous(), keys, values, None, None, *rows, scale)
    return torch.einsum("thr,hvr->thv", seen, value_up).contiguous()


def check_latents(
    rope_keys: Tensor, latents: Tensor, rope_scales: Tensor | None, latent_scales: Tensor | None
) -> None:
    """Refuse latents and keys that do not belong together."""
    check_cache(rope_keys, latents, rope_scales, latent_scales)
    require(
        rope_keys.shape[2] == 1
        and rope_keys.shape[3] % 2 == 0
        and 0 < rope_keys.shape[3] <= MAX_ROPE_DIM
        and 0 < latents.shape[3] <= MAX_LATENT,
        f"a latent of at most {MAX_LATENT} and an even key of at most {MAX_ROPE_DIM} are cached"
        f" once for all heads, not {list(latents.shape)} and {list(rope_keys.shape)}.",
    )


def head_weights(
    up: Tensor, number: int, num_heads: int, nope_dim: int, value_dim: int, rank: int
) -> tuple[Tensor, Tensor]:
    """Return what makes keys (H, nope_dim, rank) and values (H, value_dim, rank) of a latent."""
    require(nope_dim > 0 and value_dim > 0, f"heads of {nope_dim} and {value_dim} cannot be.")
    key_rows, value_rows = (-(-dim // LANES) * LANES for dim in (nope_dim, value_dim))
    num_out = num_heads * (key_rows + value_rows)
    kind = checked_format(up, number, num_out, rank)
    heads = unpack(up, kind, num_out, rank).view(num_heads, -1, rank)
    return heads[:, :nope_dim], heads[:, key_rows : key_rows + value_dim]


def read(cache: Tensor, scales: Tensor | None) -> Tensor:
    """Return all of a cache as float32."""
    values = cache.float()
    return values if scales is None or cache.dtype != torch.int8 else values * scales.unsqueeze(-1)


def _rotate(states: Tensor, cosine: Tensor, sine: Tensor, interleaved: bool) -> Tensor:
    if interleaved:
        first, second = states[..., 0::2], states[..., 1::2]
    else:
        first, second = states.chunk(2, dim=-1)
    cosine, sine = cosine[:, None], sine[:, None]
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
