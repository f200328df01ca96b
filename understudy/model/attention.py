"""The attention seam, and the packed reference every cache must equal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from understudy.errors import Internal
from understudy.model.linear import Linear


@dataclass(frozen=True, slots=True)
class LatentHeads:
    """How keys and values of all heads come out of a token's latent.

    Two equal ways to attend: `expand` the latents to keys and values (few latents, many queries),
    or `absorb` the expansion into the queries, attend over latents alone, and `lift` the result
    (many latents, few queries): DeepSeek-V2, arXiv 2405.04434, section 2.1.2.
    """

    up: Linear
    key_up: Tensor  # (H, nope_dim, kv_rank)
    value_up: Tensor  # (H, value_dim, kv_rank)
    scale: float

    @property
    def value_dim(self) -> int:
        """The width of one head's values."""
        return self.value_up.shape[1]

    def expand(self, latent: Tensor, rope_key: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys (S, H, nope_dim + rope_dim) and values (S, H, value_dim) of S tokens.

        `latent` is (S, kv_rank), `rope_key` (S, rope_dim).
        """
        num_heads, nope_dim = self.key_up.shape[:2]
        both = self.up(latent).view(latent.shape[0], num_heads, -1)
        key, value = both[..., :nope_dim], both[..., nope_dim:]
        shared = rope_key[:, None].expand(-1, num_heads, -1)
        return torch.cat((key, shared), dim=-1), value

    def absorb(self, query: Tensor) -> Tensor:
        """Return queries (T, H, kv_rank + rope_dim) that attend over latents and rope keys."""
        nope_dim = self.key_up.shape[1]
        nope, rope = query[..., :nope_dim], query[..., nope_dim:]
        return torch.cat((torch.einsum("thn,hnr->thr", nope, self.key_up), rope), dim=-1)

    def lift(self, attended: Tensor) -> Tensor:
        """Return values (T, H, value_dim) of attended latents (T, H, kv_rank)."""
        return torch.einsum("thr,hvr->thv", attended, self.value_up)


class AttentionContext(Protocol):
    """Whoever remembers keys and values; it knows which sequence each row belongs to."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return what each query row sees, (T, H, head_dim).

        `query` is (T, H, head_dim), `key` and `value` (T, num_kv_heads, head_dim), all rotated.
        """
        ...

    def attend_latent(
        self, layer: int, query: Tensor, latent: Tensor, rope_key: Tensor, heads: LatentHeads
    ) -> Tensor:
        """Return what each query row sees, (T, H, value_dim), remembering latents only.

        `query` is (T, H, nope_dim + rope_dim), `latent` (T, kv_rank), `rope_key` (T, rope_dim).
        """
        ...


class PackedCausal:
    """Several whole sequences back to back in one batch; nothing is remembered between calls.

    The reference for every cache, and the context of training: differentiable, padded to the
    longest sequence of the batch only inside attention.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        if not lengths or min(lengths) <= 0:
            raise Internal(f"Packed lengths must be positive, got {list(lengths)[:8]}.")
        self._num_tokens = sum(lengths)
        self._shape = (len(lengths), max(lengths))
        self._gather: Tensor | None = None
        self._scatter: Tensor | None = None
        if min(lengths) != max(lengths):
            sizes = torch.tensor(lengths)
            column = torch.arange(self._shape[1])
            starts = sizes.cumsum(0) - sizes
            is_real = column < sizes[:, None]
            # Padding repeats a sequence's first row: finite, and never selected again.
            self._gather = (starts[:, None] + column * is_real).flatten()
            self._scatter = is_real.flatten().nonzero().flatten()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # noqa: ARG002
        """Attend causally within each sequence; shapes as in `AttentionContext`."""
        return self._attend(query, key, value, None)

    def attend_latent(
        self,
        layer: int,  # noqa: ARG002
        query: Tensor,
        latent: Tensor,
        rope_key: Tensor,
        heads: LatentHeads,
    ) -> Tensor:
        """Attend over expanded latents; shapes as in `AttentionContext`."""
        key, value = heads.expand(latent, rope_key)
        return self._attend(query, key, value, heads.scale)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        if query.shape[0] != self._num_tokens:
            raise Internal(
                f"The batch has {query.shape[0]} rows, its lengths add up to {self._num_tokens}."
            )
        # Padding comes last, so the causal mask alone hides it from every real row.
        attended = functional.scaled_dot_product_attention(
            self._pad(query),
            self._pad(key),
            self._pad(value),
            is_causal=True,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        rows = attended.transpose(1, 2).flatten(0, 1)
        return rows if self._scatter is None else rows.index_select(0, self._scatter)

    def _pad(self, states: Tensor) -> Tensor:
        rows = states if self._gather is None else states.index_select(0, self._gather)
        return rows.view(*self._shape, *rows.shape[1:]).transpose(1, 2)
