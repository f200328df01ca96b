"""The sampling tail: allowed tokens, top-k, top-p, temperature, and one number for each row."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from understudy_kernels.reference.checks import check_floats, require


def sample_tokens(
    logits: Tensor,
    mask: Tensor | None,
    temperatures: Tensor,
    top_ks: Tensor,
    top_ps: Tensor,
    uniforms: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return tokens, log-probabilities, margins and mask losses, all (B,), of `logits` (B, V).

    The distribution is inverted at `uniforms` (B,) in [0, 1); temperature 0 is greedy, top_k 0 and
    top_p 1 keep everything. Bit i % 32 of word i // 32 of `mask` (B, words) int32 allows token i.
    Log-probabilities are of the whole distribution at temperature 1, margins (best minus second
    best) of the allowed tokens, mask losses the probability of the others.
    """
    check_floats(logits, 2, "logits")
    num_rows, vocab_size = logits.shape
    check_shapes(logits, mask, temperatures, top_ks, top_ps, uniforms)
    _check_values(logits, temperatures, top_ks, top_ps, uniforms)
    logprobs = logits.log_softmax(dim=-1)
    allowed, losses = logits, logits.new_zeros(num_rows)
    if mask is not None:
        is_allowed = _unpack(mask, vocab_size)
        for row in (~is_allowed.any(dim=-1)).nonzero().flatten().tolist():
            require(False, f"the mask of row {row} allows no token at all.")
        allowed = logits.masked_fill(~is_allowed, -math.inf)
        losses = logprobs.exp().masked_fill(is_allowed, 0.0).sum(dim=-1)
    top = allowed.softmax(dim=-1).topk(min(2, vocab_size), dim=-1).values
    tokens = allowed.argmax(dim=-1)
    for row in (temperatures > 0).nonzero().flatten().tolist():
        params = (float(temperatures[row]), int(top_ks[row]), float(top_ps[row]))
        tokens[row] = _draw(allowed[row], *params, float(uniforms[row]))
    margins = top[:, 0] - top[:, 1] if vocab_size > 1 else top[:, 0]
    return tokens, logprobs.gather(1, tokens[:, None]).squeeze(1), margins, losses


def check_shapes(
    logits: Tensor,
    mask: Tensor | None,
    temperatures: Tensor,
    top_ks: Tensor,
    top_ps: Tensor,
    uniforms: Tensor,
) -> None:
    """Refuse tensors that do not fit `logits` (B, V), without a look at their values."""
    num_rows = logits.shape[0]
    require(logits.shape[1] > 0, "logits must have a vocabulary.")
    for each in (temperatures, top_ps, uniforms):
        require(
            each.dtype == torch.float64 and each.dim() == 1 and each.numel() == num_rows,
            f"temperatures, top_ps and uniforms must be {num_rows} contiguous float64.",
        )
    require(
        top_ks.dtype == torch.int64 and top_ks.dim() == 1 and top_ks.numel() == num_rows,
        f"top_ks must be {num_rows} contiguous int64.",
    )
    require(
        mask is None
        or (mask.dtype == torch.int32 and mask.dim() == 2 and mask.shape[0] == num_rows),
        f"mask must be contiguous int32 of {num_rows} rows.",
    )


def _check_values(
    logits: Tensor, temperatures: Tensor, top_ks: Tensor, top_ps: Tensor, uniforms: Tensor
) -> None:
    is_good = (temperatures >= 0) & (top_ks >= 0) & (top_ps > 0) & (top_ps <= 1)
    is_good &= (uniforms >= 0) & (uniforms < 1)
    for row in (~is_good).nonzero().flatten().tolist():
        require(False, f"row {row} has parameters out of range.")
    for row in logits.isnan().any(dim=-1).nonzero().flatten().tolist():
        require(False, f"logits of row {row} are not numbers.")


def _unpack(mask: Tensor, vocab_size: int) -> Tensor:
    bits = torch.arange(32, dtype=torch.int32, device=mask.device)
    unpacked = ((mask[:, :, None] >> bits) & 1).bool().flatten(1)[:, :vocab_size]
    return functional.pad(unpacked, (0, vocab_size - unpacked.shape[1]), value=False)


def _draw(logits: Tensor, temperature: float, top_k: int, top_p: float, drawn: float) -> int:
    ids: Tensor | None = None
    if top_k or top_p < 1.0:
        # Stable, so that equal logits keep the order of their ids everywhere.
        logits, ids = logits.sort(descending=True, stable=True)
        logits = logits[: top_k or None]
    # Subtracting the best first keeps tiny temperatures finite: they become greedy.
    scaled = (logits.double() - logits.max().double()) / temperature
    cumulative = scaled.exp().cumsum(dim=-1)
    if top_p < 1.0:
        cumulative = cumulative[: int((cumulative < top_p * cumulative[-1]).sum()) + 1]
    index = int(torch.searchsorted(cumulative, drawn * cumulative[-1:], right=True))
    # Rounding may carry the target onto the total, past the last token with any probability.
    index = min(index, int(torch.searchsorted(cumulative, cumulative[-1:])))
    return index if ids is None else int(ids[index])
