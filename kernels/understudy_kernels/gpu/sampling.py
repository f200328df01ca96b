"""The sampling tail: one program per row, which reads its logits once and weighs them as integers.

A token's weight is its probability over the best one's, as a 64-bit integer: sums are then the same
in whatever order they are made, so that what is kept and what is drawn needs no sorting. The least
key whose mass, from the top, reaches a goal is found four bits at a time (a radix select); equal
logits keep the order of their ids.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from understudy_kernels.reference.checks import check_floats, require
from understudy_kernels.reference.sampling import check_shapes

BLOCK = 512
NUM_WARPS = 8
MAX_VOCAB = 1 << 18
UNIT = tl.constexpr(float(1 << 44))
"""The weight of the best token: 2^18 of them still fit."""
NOBODY = tl.constexpr(1 << 30)
NOT_NUMBERS, NO_TOKEN, OUT_OF_RANGE = 1, 2, 3


@triton.jit
def _allowed_at(mask_ptr, ids, num_words, vocab_size, HAS_MASK: tl.constexpr):
    """Say which tokens may be chosen."""
    is_allowed = ids < vocab_size
    if HAS_MASK:
        word = ids // 32
        bits = tl.load(mask_ptr + word, mask=is_allowed & (word < num_words), other=0)
        is_allowed = is_allowed & (((bits >> (ids % 32)) & 1) != 0)
    return is_allowed


@triton.jit
def _keys(logits):
    """Numbers in [0, 2^32) in the order of the logits."""
    bits = (logits + 0.0).to(tl.int32, bitcast=True)  # no zero is below another
    flipped = tl.where(bits < 0, ~bits, bits ^ -2147483648)
    return flipped.to(tl.int64) & 0xFFFFFFFF


@triton.jit
def _search(logits_ptr, weights_ptr, vocab_size, goal, IS_COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Return the largest key that with all above it weighs `goal`, and what those above weigh.

    `goal` is at least 1 and at most everything. Tokens that may not be chosen weigh -1.
    """
    digits = tl.arange(0, 16)
    prefix = tl.zeros((), dtype=tl.int64)
    above = tl.zeros((), dtype=tl.int64)
    for level in range(8):
        bins = tl.zeros((16,), dtype=tl.int64)
        for start in range(0, vocab_size, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            weights = tl.load(weights_ptr + ids, mask=ids < vocab_size, other=-1)
            keys = _keys(tl.load(logits_ptr + ids, mask=ids < vocab_size, other=0.0))
            upper = keys >> (28 - 4 * level)
            amounts = tl.where(weights >= 0, 1, 0) if IS_COUNT else tl.maximum(weights, 0)
            amounts = tl.where((upper >> 4) == prefix, amounts, 0).to(tl.int64)
            is_mine = (upper & 15)[:, None] == digits[None, :]
            bins += tl.sum(tl.where(is_mine, amounts[:, None], 0), axis=0)
        from_here = digits[None, :] >= digits[:, None]
        reaching = above + tl.sum(tl.where(from_here, bins[None, :], 0), axis=1)
        digit = tl.max(tl.where(reaching >= goal, digits, 0), axis=0)
        above += tl.sum(tl.where(digits > digit, bins, 0), axis=0)
        prefix = prefix * 16 + digit
    return prefix, above


@triton.jit
def _weight_of(logits_ptr, weights_ptr, vocab_size, key, BLOCK: tl.constexpr):
    """Return the weight of a token with this key."""
    found = tl.zeros((), dtype=tl.int64)
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        weights = tl.load(weights_ptr + ids, mask=ids < vocab_size, other=-1)
        keys = _keys(tl.load(logits_ptr + ids, mask=ids < vocab_size, other=0.0))
        found = tl.maximum(found, tl.max(tl.where(keys == key, weights, 0), axis=0))
    return found


@triton.jit
def _first_beyond(
    logits_ptr, weights_ptr, vocab_size, target, key, IS_TIE: tl.constexpr, BLOCK: tl.constexpr
):
    """Return the first id at which the sum of weights, or the count of `key`, is above `target`."""
    first = tl.full((), NOBODY, dtype=tl.int32)
    total = tl.zeros((), dtype=tl.int64)
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        weights = tl.load(weights_ptr + ids, mask=ids < vocab_size, other=-1)
        if IS_TIE:
            keys = _keys(tl.load(logits_ptr + ids, mask=ids < vocab_size, other=0.0))
            amounts = tl.where((keys == key) & (weights >= 0), 1, 0).to(tl.int64)
        else:
            amounts = tl.maximum(weights, 0)
        sums = total + tl.cumsum(amounts, axis=0)
        first = tl.minimum(first, tl.min(tl.where(sums > target, ids, NOBODY), axis=0))
        total += tl.sum(amounts, axis=0)
    return first


@triton.jit
def _draw(
    logits_ptr, weights_ptr, vocab_size, num_allowed, mass, top_k, top_p, drawn,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the token at `drawn` of what top-k and top-p keep."""
    token = tl.full((), NOBODY, dtype=tl.int32)
    if (top_k == 0) & (top_p >= 1.0):
        target = tl.minimum((drawn * mass.to(tl.float64)).to(tl.int64), mass - 1)
        token = _first_beyond(logits_ptr, weights_ptr, vocab_size, target, 0, False, BLOCK)
    else:
        kept = mass
        if (top_k > 0) & (top_k < num_allowed):
            last, num_above = _search(logits_ptr, weights_ptr, vocab_size, top_k, True, BLOCK)
            # What lies above weighs the same, whether it is counted or weighed.
            kept = tl.zeros((), dtype=tl.int64)
            for start in range(0, vocab_size, BLOCK):
                ids = start + tl.arange(0, BLOCK)
                weights = tl.load(weights_ptr + ids, mask=ids < vocab_size, other=-1)
                keys = _keys(tl.load(logits_ptr + ids, mask=ids < vocab_size, other=0.0))
                kept += tl.sum(tl.where(keys > last, tl.maximum(weights, 0), 0), axis=0)
            of_last = _weight_of(logits_ptr, weights_ptr, vocab_size, last, BLOCK)
            kept += (top_k - num_above) * of_last
        if top_p < 1.0:
            goal = tl.minimum(tl.maximum((top_p * kept.to(tl.float64)).to(tl.int64), 1), kept)
            last, above = _search(logits_ptr, weights_ptr, vocab_size, goal, False, BLOCK)
            of_last = _weight_of(logits_ptr, weights_ptr, vocab_size, last, BLOCK)
            kept = above + (goal - above + of_last - 1) // of_last * of_last
        target = tl.minimum((drawn * kept.to(tl.float64)).to(tl.int64), kept - 1)
        last, above = _search(logits_ptr, weights_ptr, vocab_size, target + 1, False, BLOCK)
        of_last = _weight_of(logits_ptr, weights_ptr, vocab_size, last, BLOCK)
        nth = (target - above) // of_last
        token = _first_beyond(logits_ptr, weights_ptr, vocab_size, nth, last, True, BLOCK)
    return token


@triton.jit
def _sampling_kernel(
    logits_ptr, mask_ptr, temperatures_ptr, top_ks_ptr, top_ps_ptr, uniforms_ptr, weights_ptr,
    tokens_ptr, logprobs_ptr, margins_ptr, losses_ptr, refusals_ptr, vocab_size, num_words,
    HAS_MASK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * vocab_size
    weights_ptr += row * vocab_size
    mask_ptr += row * num_words
    highest = tl.full((), float("-inf"), dtype=tl.float32)  # of all tokens
    best = tl.full((), float("-inf"), dtype=tl.float32)  # of those allowed
    second = tl.full((), float("-inf"), dtype=tl.float32)
    token = tl.full((), NOBODY, dtype=tl.int32)
    num_allowed = tl.zeros((), dtype=tl.int64)
    num_odd = tl.zeros((), dtype=tl.int64)
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + ids, mask=ids < vocab_size, other=float("-inf"))
        num_odd += tl.sum((logits != logits).to(tl.int64), axis=0)
        is_allowed = _allowed_at(mask_ptr, ids, num_words, vocab_size, HAS_MASK)
        num_allowed += tl.sum(is_allowed.to(tl.int64), axis=0)
        highest = tl.maximum(highest, tl.max(logits, axis=0))
        logits = tl.where(is_allowed, logits, float("-inf"))
        top = tl.max(logits, axis=0)
        where = tl.min(tl.where(is_allowed & (logits == top), ids, NOBODY), axis=0)
        next_top = tl.max(tl.where(ids == where, float("-inf"), logits), axis=0)
        second = tl.maximum(tl.maximum(second, next_top), tl.minimum(best, top))
        token = tl.where((top > best) | (token == NOBODY), where, token)
        best = tl.maximum(best, top)
    temperature = tl.load(temperatures_ptr + row)
    top_k, top_p = tl.load(top_ks_ptr + row), tl.load(top_ps_ptr + row)
    drawn = tl.load(uniforms_ptr + row)
    is_good = (temperature >= 0) & (top_k >= 0) & (top_p > 0) & (top_p <= 1)
    is_good = is_good & (drawn >= 0) & (drawn < 1)
    refusal = tl.where(num_odd > 0, 1, tl.where(is_good, tl.where(num_allowed > 0, 0, 2), 3))
    tl.store(refusals_ptr + row, refusal)
    if refusal == 0:
        everything = tl.zeros((), dtype=tl.float32)
        lost = tl.zeros((), dtype=tl.float32)
        chosen_from = tl.zeros((), dtype=tl.float32)
        mass = tl.zeros((), dtype=tl.int64)
        by = tl.where(temperature > 0, temperature, 1.0)
        for start in range(0, vocab_size, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            logits = tl.load(logits_ptr + ids, mask=ids < vocab_size, other=float("-inf"))
            is_allowed = _allowed_at(mask_ptr, ids, num_words, vocab_size, HAS_MASK)
            shares = tl.exp(logits - highest)
            everything += tl.sum(shares, axis=0)
            lost += tl.sum(tl.where(is_allowed, 0.0, shares), axis=0)
            logits = tl.where(is_allowed, logits, float("-inf"))
            chosen_from += tl.sum(tl.exp(logits - best), axis=0)
            scaled = (logits.to(tl.float64) - best.to(tl.float64)) / by
            weights = (tl.exp(scaled) * UNIT).to(tl.int64)
            mass += tl.sum(weights, axis=0)
            tl.store(weights_ptr + ids, tl.where(is_allowed, weights, -1), mask=ids < vocab_size)
        tl.debug_barrier()
        if temperature > 0:
            token = _draw(
                logits_ptr, weights_ptr, vocab_size, num_allowed, mass, top_k, top_p, drawn, BLOCK
            )
        token = tl.minimum(token, vocab_size - 1)  # infinite logits have no distribution
        logprob = tl.load(logits_ptr + token) - highest - tl.log(everything)
        tl.store(tokens_ptr + row, token)
        tl.store(logprobs_ptr + row, logprob)
        tl.store(margins_ptr + row, (1.0 - tl.exp(second - best)) / chosen_from)
        tl.store(losses_ptr + row, lost / everything)


def sample_tokens(
    logits: Tensor,
    mask: Tensor | None,
    temperatures: Tensor,
    top_ks: Tensor,
    top_ps: Tensor,
    uniforms: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return tokens, log-probabilities, margins and mask losses, all (B,), of `logits` (B, V).

    As the reference's, which tells the parameters; weights below 2^-44 of the best are none. What
    cannot be sampled is refused after the fact, with the one wait that its reader has anyway.
    """
    check_floats(logits, 2, "logits")
    check_shapes(logits, mask, temperatures, top_ks, top_ps, uniforms)
    num_rows, vocab_size = logits.shape
    require(vocab_size <= MAX_VOCAB, f"a vocabulary of {vocab_size} is above {MAX_VOCAB}.")
    tokens = logits.new_zeros(num_rows, dtype=torch.int64)
    logprobs, margins, losses = (logits.new_zeros(num_rows) for _ in range(3))
    refusals = logits.new_zeros(num_rows, dtype=torch.int32)
    if num_rows:
        _sampling_kernel[(num_rows,)](
            logits, logits if mask is None else mask, temperatures, top_ks, top_ps, uniforms,
            torch.empty_like(logits, dtype=torch.int64), tokens, logprobs, margins, losses,
            refusals, vocab_size, 0 if mask is None else mask.shape[1],
            HAS_MASK=mask is not None, BLOCK=BLOCK, num_warps=NUM_WARPS,
        )  # fmt: skip
    for row, refusal in enumerate(refusals.tolist()):
        require(refusal != NOT_NUMBERS, f"logits of row {row} are not numbers.")
        require(refusal != NO_TOKEN, f"the mask of row {row} allows no token at all.")
        require(refusal != OUT_OF_RANGE, f"row {row} has parameters out of range.")
    return tokens, logprobs, margins, losses
