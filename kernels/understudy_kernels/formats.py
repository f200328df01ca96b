"""Number formats of weights and how they lie in memory for the kernels.

A group is 16 output rows side by side. Within a group, units of inputs follow one another (32 of
them, 256 for the K formats): first the scales of the 16 rows, then the quantised values in quads,
four inputs of row 0, the same four of row 1, and so on. Rows beyond the last are zero. The size is
that of the GGUF file (Q4_K 3 % more), and one layout serves every instruction set.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from torch import Tensor

LANES: Final = 16
BLOCK: Final = 32
SUPER_BLOCK: Final = 256


class Format(IntEnum):
    """How weights are stored; the numbers are part of operators' arguments and never change."""

    F32 = 0
    F16 = 1
    BF16 = 2
    Q8_0 = 3
    """int8, one float16 scale per 32; also our own int8 with wider groups."""
    Q4_0 = 4
    """4 bits around 8, one float16 scale per 32; also our own int4 with wider groups."""
    Q4_1 = 5
    Q4_K = 6
    Q6_K = 7

    @property
    def is_quantised(self) -> bool:
        """Whether the fast mode quantises activations for it."""
        return self >= Format.Q8_0

    @property
    def unit_inputs(self) -> int:
        """Inputs must be a multiple of this, for 16- and 32-bit formats after padding."""
        return SUPER_BLOCK if self >= Format.Q4_K else BLOCK

    @property
    def unit_bytes(self) -> int:
        """Bytes of one unit of 16 rows."""
        return (2048, 1024, 1024, 544, 288, 320, 2368, 3360)[self]


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A weight (num_out, num_in) as the kernels read it; made by `packing`, never by hand."""

    data: Tensor
    """(packed_bytes,) uint8."""
    format: Format
    num_out: int
    num_in: int


@dataclass(frozen=True, slots=True)
class PackedFfn:
    """The three matrices of a SwiGLU feed-forward: gate and up (F, D), down (D, F)."""

    gate: PackedLinear
    up: PackedLinear
    down: PackedLinear

    @property
    def formats(self) -> list[int]:
        """The formats of the three."""
        return [int(self.gate.format), int(self.up.format), int(self.down.format)]


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """Experts of one shape and format, stacked: each tensor is (E, packed_bytes) uint8."""

    gate: Tensor
    up: Tensor
    down: Tensor
    formats: tuple[int, int, int]
    ffn_size: int


@dataclass(frozen=True, slots=True)
class CacheView:
    """Keys and values of one layer, (blocks, block_size, kv_heads, dim), any strides but the last.

    float32, bfloat16, float16 or int8; int8 needs float32 scales (blocks, block_size, kv_heads).
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PackedHeads:
    """How keys and values of all heads come out of a latent, without their rotated part.

    `up` has of each head the rows of its keys, then those of its values, both filled up with rows
    of zeros to a multiple of 16; its inputs are the latent's.
    """

    up: PackedLinear
    value_dim: int


@dataclass(frozen=True, slots=True)
class LatentView:
    """Latents and rotated keys of one layer, (blocks, block_size, 1, dim); else as `CacheView`."""

    rope_keys: Tensor
    latents: Tensor
    rope_scales: Tensor | None = None
    latent_scales: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """Which tokens each row of a step sees, all int32."""

    tables: Tensor
    """(B, n): the blocks of each sequence, in order."""
    sequences: Tensor
    """(T,): the table of each row; rows of one sequence lie together."""
    lengths: Tensor
    """(T,): how many tokens the row sees, itself included."""


@dataclass(frozen=True, slots=True)
class DecoderLayers:
    """The weights of every layer of a dense decoder, as `decoder_layers` takes them."""

    weights: list[Tensor]
    """A layer's: attention norm, packed q, k, v, o, FFN norm, packed gate, up, down of each
    shard."""
    formats: list[int]
    """Those of the packed ones."""
    biases: list[Tensor]
    """None, or one a layer: (q + k + v,) of the projections."""
    head_norms: list[Tensor]
    """None, or two a layer: norms of query and key heads (dim,)."""
    num_heads: int
    ffn_size: int
    """The inner size of one shard."""
    eps: float
    num_shards: int = 1
    """Slices of the feed-forward whose partial sums are added in this order."""


def num_groups(num_out: int) -> int:
    """Return how many groups of 16 rows hold `num_out` rows."""
    return -(-num_out // LANES)


def packed_bytes(kind: Format, num_out: int, num_in: int) -> int:
    """Return the size of a packed weight."""
    return num_groups(num_out) * -(-num_in // kind.unit_inputs) * kind.unit_bytes
