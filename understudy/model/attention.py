"""The attention seam, rotary positions, and the packed reference every other cache must equal."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from understudy.errors import Internal


class AttentionContext(Protocol):
    """Whoever remembers keys and values; it knows which sequence each row belongs to."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return what each query row sees, (T, H, head_dim).

        `query` is (T, H, head_dim), `key` and `value` (T, num_kv_heads, head_dim), all rotated.
        """
        ...


class Rotary:
    """Rotary position embedding in the Hugging Face layout (halves, not interleaved pairs)."""

    def __init__(self, head_dim: int, theta: float) -> None:
        self._head_dim, self._theta = head_dim, theta

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine of `positions` (T,), each (T, 1, head_dim / 2)."""
        exponents = torch.arange(0, self._head_dim, 2, dtype=torch.int64, device=positions.device)
        frequencies = 1.0 / (self._theta ** (exponents.float() / self._head_dim))
        phase = positions.float()[:, None, None] * frequencies
        return phase.cos(), phase.sin()


def rotate(states: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate query or key rows (T, heads, head_dim) by the angles of their positions."""
    cosine, sine = angles
    first, second = states.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


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
            enable_gqa=query.shape[1] != key.shape[1],
        )
        rows = attended.transpose(1, 2).flatten(0, 1)
        return rows if self._scatter is None else rows.index_select(0, self._scatter)

    def _pad(self, states: Tensor) -> Tensor:
        rows = states if self._gather is None else states.index_select(0, self._gather)
        return rows.view(*self._shape, *rows.shape[1:]).transpose(1, 2)
