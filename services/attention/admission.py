"""Checks what a router asks for before anything is compiled, loaded or queued. Pure functions."""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from services.attention.forecast import Outlook, StepCosts
from services.attention.sequence import DecodingParams, Submission
from understudy.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PromptTooLong,
    ResourceExhausted,
)

MAX_TEMPERATURE: Final = 4.0
MAX_STOP_TEXTS: Final = 8
MAX_STOP_BYTES: Final = 128
KV_ROOT_BYTES: Final = 32
MIN_RETRY_S: Final = 0.1
DEFAULT_RETRY_S: Final = 1.0
MAX_RETRY_S: Final = 60.0
_TENANT: Final = re.compile(r"[a-z0-9-]{1,63}")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the loaded model can take."""

    vocab_size: int
    max_context: int
    adapters: Collection[str]


def check_submission(submission: Submission, limits: Limits) -> None:
    """Raise InvalidArgument, PromptTooLong or NotFound naming the first thing that is wrong."""
    _check_tokens(submission, limits)
    _check_params(submission.params, limits)
    if submission.adapter and submission.adapter not in limits.adapters:
        raise NotFound(
            f"This worker has no adapter {submission.adapter!r}; it has {sorted(limits.adapters)}.",
            {"adapter": submission.adapter},
        )
    if submission.kv_root:
        _require(
            len(submission.kv_root) == KV_ROOT_BYTES,
            "kv_root",
            f"The KV root has {len(submission.kv_root)} bytes; it is {KV_ROOT_BYTES} or none.",
        )
        _require(
            _TENANT.fullmatch(submission.tenant) is not None,
            "tenant",
            "The tenant of shared KV is 1 to 63 characters out of a-z, 0-9 and '-'.",
        )


def check_deadline(outlook: Outlook, costs: StepCosts, time_left_s: float) -> None:
    """Refuse at once what cannot end before its deadline at the measured rates.

    Raises DeadlineExceeded when the sequence alone takes longer than it has, ResourceExhausted
    with the time to wait when only those ahead of it make it late. Before rates are known, and
    where in doubt, it passes.
    """
    own_s = costs.seconds(outlook.own_steps, outlook.own_tokens)
    ahead_s = costs.seconds(outlook.ahead_steps, outlook.ahead_tokens)
    if own_s is None or ahead_s is None or own_s + ahead_s <= time_left_s:
        return
    metadata = {
        "reason": "deadline cannot be met",
        "time_left_s": f"{max(0.0, time_left_s):.3g}",
        "needed_s": f"{own_s + ahead_s:.3g}",
    }
    if own_s > time_left_s:
        raise DeadlineExceeded(
            f"The sequence takes {own_s:.3g} s on this worker even alone, and {time_left_s:.3g} s "
            "are left; shorten the prompt or allow more time.",
            metadata,
        )
    retry_after_s = min(MAX_RETRY_S, max(MIN_RETRY_S, own_s + ahead_s - time_left_s))
    raise ResourceExhausted(
        f"The sequence needs {own_s:.3g} s after {ahead_s:.3g} s of work ahead of it, and "
        f"{time_left_s:.3g} s are left; try again in {retry_after_s:.3g} s or elsewhere.",
        metadata,
        retry_after_s=retry_after_s,
    )


def retry_after_s(costs: StepCosts, num_waiting: int, backlog_tokens: int) -> float:
    """Return when a place in a full queue is likely free: its mean share of the backlog."""
    drain_s = costs.seconds(1, backlog_tokens)
    if drain_s is None or num_waiting == 0:
        return DEFAULT_RETRY_S
    return min(MAX_RETRY_S, max(MIN_RETRY_S, drain_s / num_waiting))


def least_outputs(submission: Submission) -> int:
    """Return how many tokens a sequence generates at the least."""
    params = submission.params
    may_stop = not params.ignore_eos or params.stop or submission.matcher is not None
    return 1 if may_stop else max(1, params.max_tokens - submission.num_committed)


def _check_tokens(submission: Submission, limits: Limits) -> None:
    tokens, num_committed = submission.tokens, submission.num_committed
    _require(len(tokens) > 0, "tokens", "The prompt is empty; send at least one token.")
    _require(
        num_committed < len(tokens),
        "committed_tokens",
        f"{num_committed} committed tokens leave no prompt in {len(tokens)} tokens.",
    )
    if len(tokens) >= limits.max_context:
        raise PromptTooLong(
            f"{len(tokens)} tokens leave no room for output in a context of"
            f" {limits.max_context}; shorten the prompt.",
            {
                "field": "tokens",
                "num_tokens": str(len(tokens)),
                "max_context": str(limits.max_context),
            },
        )
    _require(
        max(tokens) < limits.vocab_size,
        "tokens",
        f"Token {max(tokens)} is outside the vocabulary of {limits.vocab_size}.",
    )


def _check_params(params: DecodingParams, limits: Limits) -> None:
    _require(
        1 <= params.max_tokens <= limits.max_context,
        "sampling.max_tokens",
        f"max_tokens is {params.max_tokens}; it is 1 to {limits.max_context}.",
    )
    _require(
        math.isfinite(params.temperature) and 0.0 <= params.temperature <= MAX_TEMPERATURE,
        "sampling.temperature",
        f"The temperature is {params.temperature:g}; it is 0 to {MAX_TEMPERATURE:g}.",
    )
    _require(
        math.isfinite(params.top_p) and 0.0 < params.top_p <= 1.0,
        "sampling.top_p",
        f"top_p is {params.top_p:g}; it is above 0 and at most 1.",
    )
    _require(
        len(params.stop) <= MAX_STOP_TEXTS,
        "sampling.stop",
        f"{len(params.stop)} stop texts were given; at most {MAX_STOP_TEXTS} are watched.",
    )
    _require(
        all(0 < len(text.encode()) <= MAX_STOP_BYTES for text in params.stop),
        "sampling.stop",
        f"A stop text has 1 to {MAX_STOP_BYTES} bytes.",
    )


def _require(is_met: bool, field: str, sentence: str) -> None:
    if not is_met:
        raise InvalidArgument(sentence, {"field": field})
