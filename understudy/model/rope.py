"""Rotary positions (arXiv 2104.09864) and the ways families stretch them.

Frequencies of a row depend on its position only, never on what else is in the step: a prompt
computed whole, in chunks or again after a failure is rotated alike. For dynamic NTK scaling this
means the frequencies of a sequence that ends at the position.
"""

import math
from typing import Final

import torch
from torch import Tensor

from understudy.model.config import ModelConfig
from understudy.model.traits import RopeScaling

RUN: Final = 256
Angles = tuple[Tensor, Tensor]
"""Cosine and sine, each (T, 1, rotary_dim / 2)."""


class Rotary:
    """Turns positions into angles."""

    def __init__(self, config: ModelConfig) -> None:
        self._dim, self._theta = config.rotary_dim, config.rope_theta
        self._scaling = config.rope_scaling
        self._amplitude = 1.0 if self._scaling is None else self._scaling.amplitude
        self._frequencies = _scaled(frequencies(self._dim, self._theta), config)

    def angles(self, positions: Tensor) -> Angles:
        """Return cosine and sine of `positions` (T,)."""
        steps = positions.float()[:, None, None]
        if self._scaling is not None and self._scaling.kind == "dynamic":
            phase = steps * self._dynamic(positions, self._scaling)
        else:
            phase = steps * self._frequencies.to(positions.device)
        cosine, sine = phase.cos(), phase.sin()
        if self._amplitude == 1.0:
            return cosine, sine
        return cosine * self._amplitude, sine * self._amplitude

    def _dynamic(self, positions: Tensor, scaling: RopeScaling) -> Tensor:
        lengths = (positions + 1).clamp_min(scaling.original_positions).double()[:, None, None]
        stretch = scaling.factor * lengths / scaling.original_positions - (scaling.factor - 1.0)
        theta = self._theta * stretch ** (self._dim / (self._dim - 2))
        exponents = _exponents(self._dim, positions.device)
        inverse: Tensor = 1.0 / theta.float() ** exponents
        return inverse


class AngleTable:
    """The angles of every position up to the largest that was asked for.

    Filled in runs of one size, so that a position's angles have the same bits whichever rows it is
    asked for with: torch computes what does not fill its registers with another cosine.
    """

    def __init__(self, rotary: Rotary, device: torch.device) -> None:
        self._rotary, self._device = rotary, device
        self._cosine, self._sine = self._run(0)

    def rows(self, positions: Tensor, largest: int) -> Angles:
        """Return cosine and sine (T, rotary_dim / 2) of `positions` (T,), none above `largest`."""
        while largest >= self._cosine.shape[0]:
            cosine, sine = self._run(self._cosine.shape[0])
            self._cosine = torch.cat((self._cosine, cosine))
            self._sine = torch.cat((self._sine, sine))
        return self._cosine[positions], self._sine[positions]

    def _run(self, start: int) -> Angles:
        cosine, sine = self._rotary.angles(torch.arange(start, start + RUN, device=self._device))
        return cosine.squeeze(1), sine.squeeze(1)


def rotate(states: Tensor, angles: Angles) -> Tensor:
    """Rotate rows (T, heads, dim) whose pairs are halves apart (the Hugging Face layout)."""
    first, second = states.chunk(2, dim=-1)
    return _rotated(first, second, angles)


def rotate_pairs(states: Tensor, angles: Angles) -> Tensor:
    """Rotate rows (T, heads, dim) whose pairs are neighbours; the result lies in halves.

    Queries and keys that are both permuted alike have the same products.
    """
    return _rotated(states[..., 0::2], states[..., 1::2], angles)


def frequencies(dim: int, theta: float) -> Tensor:
    """Return the unscaled frequencies, (dim / 2,)."""
    inverse: Tensor = 1.0 / (theta ** _exponents(dim))
    return inverse


def _rotated(first: Tensor, second: Tensor, angles: Angles) -> Tensor:
    cosine, sine = angles
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def _exponents(dim: int, device: torch.device | None = None) -> Tensor:
    return torch.arange(0, dim, 2, dtype=torch.int64, device=device).float() / dim


def _scaled(plain: Tensor, config: ModelConfig) -> Tensor:
    scaling = config.rope_scaling
    if scaling is None or scaling.kind == "dynamic":
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "factors":
        return plain / torch.tensor(scaling.factors)
    if scaling.kind == "llama3":
        return _llama3(plain, scaling)
    return _yarn(plain, scaling, config.rotary_dim, config.rope_theta)


def _llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow frequencies are divided, fast ones kept, those between interpolated (Llama 3.1)."""
    turns = scaling.original_positions * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    share = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1.0 - share) * plain / scaling.factor + share * plain


def _yarn(plain: Tensor, scaling: RopeScaling, dim: int, theta: float) -> Tensor:
    """As `_llama3`, with a ramp over dimensions (YaRN, arXiv 2309.00071, section 3.2)."""
    low, high = (
        dim * math.log(scaling.original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low if high != low else 0.001
    share = 1.0 - ((torch.arange(dim // 2).float() - low) / width).clamp(0.0, 1.0)
    return plain / scaling.factor * (1.0 - share) + plain * share
