"""What families of models differ in, as plain data that a config is composed of.

No tensors and no torch: the router reads configs too.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

RopeKind = Literal["linear", "dynamic", "llama3", "yarn", "factors"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the positions a model was trained on.

    Names and meaning are those of Hugging Face `rope_parameters`; `factors` is what GGUF files of
    llama 3 carry instead: one divisor per frequency.
    """

    kind: RopeKind
    factor: float = 1.0
    original_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    is_truncated: bool = True
    factors: tuple[float, ...] = ()

    @property
    def amplitude(self) -> float:
        """The factor on cosine and sine (YaRN, arXiv 2309.00071, section 3.4)."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return _mscale(self.factor, self.mscale) / _mscale(self.factor, self.mscale_all_dim)
        return _mscale(self.factor, 1.0)

    @property
    def score_factor(self) -> float:
        """The factor on attention scores of latent attention (DeepSeek-V2's `mscale_all_dim`)."""
        return _mscale(self.factor, self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentShape:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    A token's keys and values of all heads are functions of one latent of `kv_rank` numbers; only
    it and the rotated key of `rope_dim` numbers, which all heads share, are cached.
    """

    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    query_rank: int | None = None
    is_interleaved: bool = True
    """Whether rotary pairs are neighbours rather than halves."""
    query_scale: float = 1.0
    kv_scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRule:
    """How scores of experts become chosen experts and weights; the default is Mixtral's.

    A bias per expert moves the choice, never the weight. With groups, only the experts of the
    `num_top_groups` best groups can be chosen, a group being as good as its best expert (`max`) or
    its two best together (`top2`).
    """

    scoring: Literal["softmax", "sigmoid"] = "softmax"
    is_normalised: bool = True
    scale: float = 1.0
    has_bias: bool = False
    num_groups: int = 1
    num_top_groups: int = 1
    group_score: Literal["max", "top2"] = "max"


DEFAULT_GATE: Final = GateRule()


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One thing that attention caches per token and layer: `num_heads` vectors of `width`."""

    name: str
    num_heads: int
    width: int


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * scale * math.log(factor) + 1.0
