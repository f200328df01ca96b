"""Choosing the next token: a counter-based generator, so that a draw has no history.

The random number of a token depends only on (seed, position): a resumed, preempted or re-placed
sequence draws what it would have drawn. It comes from SplitMix64's output function (Steele, Lea,
Flood, OOPSLA 2014) over integers modulo 2**64, and picks a token by inverting the cumulative
distribution. No row looks at another row of its batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from understudy.errors import Internal, InvalidArgument

MASK_64: Final = (1 << 64) - 1
GOLDEN_GAMMA: Final = 0x9E3779B97F4A7C15
WORD_BITS: Final = 32


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence chooses; `top_k` 0 and `top_p` 1 keep the whole distribution.

    Temperature 0 is greedy. Raises InvalidArgument naming the field that is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        is_finite = 0.0 <= self.temperature < math.inf
        for field, value, limit, is_met in (
            ("temperature", self.temperature, "at least 0 and finite", is_finite),
            ("top_k", self.top_k, "at least 0 (0 keeps every token)", self.top_k >= 0),
            ("top_p", self.top_p, "above 0 and at most 1", 0.0 < self.top_p <= 1.0),
        ):
            if not is_met:
                raise InvalidArgument(
                    f"{field} {value} is out of range; it must be {limit}.", {"field": field}
                )


@dataclass(frozen=True, slots=True)
class Sampled:
    """The chosen tokens of a batch and the evidence beside them, all (B,)."""

    tokens: Tensor
    """int64."""
    logprobs: Tensor
    """Of the token under the model's own distribution: temperature 1, no mask."""
    margins: Tensor
    """Best minus second-best probability among allowed tokens, at temperature 1; 1 if forced."""
    mask_losses: Tensor
    """Probability that the model gave to tokens the mask forbids; 0 without a mask."""


def uniform(seed: int, position: int) -> float:
    """Return the number in [0, 1) that belongs to (seed, position); any integers will do."""
    state = _scramble((seed + GOLDEN_GAMMA) & MASK_64)
    mixed = _scramble((state + (position + 1) * GOLDEN_GAMMA) & MASK_64)
    return (mixed >> 11) * 2.0**-53


def sample(
    logits: Tensor,
    params: Sequence[SamplingParams],
    seeds: Sequence[int],
    positions: Sequence[int],
    mask: Tensor | None = None,
) -> Sampled:
    """Choose a token for each row of `logits` (B, V).

    `mask` is (B, ceil(V / 32)) int32, bit `i % 32` of word `i // 32` allowing token `i`; tokens
    beyond its words are forbidden. `positions` are those of the tokens being chosen. Raises
    Internal where logits are not numbers or a mask allows nothing.
    """
    if not len(params) == len(seeds) == len(positions) == logits.shape[0]:
        raise Internal(f"Sampling got {logits.shape[0]} rows of logits, {len(params)} sequences.")
    logits = logits.float()
    if logits.isnan().any():
        raise Internal("The model produced logits that are not numbers.")
    logprobs = logits.log_softmax(dim=-1)
    allowed_logits, mask_losses = logits, logits.new_zeros(logits.shape[0])
    if mask is not None:
        is_allowed = unpack_mask(mask, logits.shape[1])
        if not is_allowed.any(dim=-1).all():
            raise Internal("A grammar mask allows no token at all.")
        allowed_logits = logits.masked_fill(~is_allowed, -math.inf)
        mask_losses = logprobs.exp().masked_fill(is_allowed, 0.0).sum(dim=-1)
    top = allowed_logits.softmax(dim=-1).topk(min(2, logits.shape[1]), dim=-1).values
    tokens = allowed_logits.argmax(dim=-1)
    for row, row_params in enumerate(params):
        if row_params.temperature > 0:
            drawn = uniform(seeds[row], positions[row])
            tokens[row] = _draw(allowed_logits[row], row_params, drawn)
    return Sampled(
        tokens=tokens,
        logprobs=logprobs.gather(1, tokens[:, None]).squeeze(1),
        margins=top[:, 0] - top[:, 1] if top.shape[1] == 2 else top[:, 0],
        mask_losses=mask_losses,
    )


def unpack_mask(mask: Tensor, vocab_size: int) -> Tensor:
    """Return the booleans (B, V) of a bit mask (B, words) of int32; missing words forbid."""
    bits = torch.arange(WORD_BITS, dtype=torch.int32, device=mask.device)
    unpacked = ((mask[:, :, None] >> bits) & 1).bool().flatten(1)[:, :vocab_size]
    missing = vocab_size - unpacked.shape[1]
    return torch.nn.functional.pad(unpacked, (0, missing), value=False) if missing else unpacked


def _scramble(state: int) -> int:
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK_64
    return state ^ (state >> 31)


def _draw(logits: Tensor, params: SamplingParams, drawn: float) -> int:
    ids: Tensor | None = None
    if params.top_k or params.top_p < 1.0:
        # Stable, so that equal logits keep the order of their ids everywhere.
        logits, ids = logits.sort(descending=True, stable=True)
        logits = logits[: params.top_k or None]
    # Subtracting the best first keeps tiny temperatures finite: they become greedy.
    scaled = (logits.double() - logits.max().double()) / params.temperature
    cumulative = scaled.softmax(dim=-1).cumsum(dim=-1)
    if params.top_p < 1.0:
        size = int((cumulative < params.top_p * cumulative[-1]).sum()) + 1
        cumulative = cumulative[:size]
    target = cumulative.new_tensor([drawn]) * cumulative[-1]
    index = int(torch.searchsorted(cumulative, target, right=True))
    # Rounding may carry the target onto the total, past the last token with any probability.
    last = int(torch.searchsorted(cumulative, cumulative[-1:]))
    index = min(index, last)
    return index if ids is None else int(ids[index])
