"""An engine's events -> `Heard`: strict on what is read, blind to what is not known; pure.

Margins are P(best) - P(second) of the candidates an engine names at a token, as native workers
measure them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

from services.router.answers import Usage
from services.router.external.failures import stream_failure
from services.router.external.port import CallPart, Heard, TokenFacts
from understudy.errors import Unavailable

Body = Mapping[str, object]
T = TypeVar("T")

MAX_CALLS: Final = 16
MAX_COUNT: Final = 2**31
END: Final = b"[DONE]"


def hear(data: bytes, pool: str) -> Heard:
    """Read one event.

    Raises Unavailable for one that is not OpenAI's, and the named error of one that reports a
    failure.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Unavailable("The engine sent an event that is not JSON.") from error
    if not isinstance(body, dict):
        raise _garbled("event")
    if body.get("error") is not None or body.get("object") == "error":
        raise stream_failure(body, pool)
    choices = _get(body, "choices", list) or []
    choice = choices[0] if choices else {}
    if not isinstance(choice, dict):
        raise _garbled("choices")
    usage = _get(body, "usage", dict)
    if "delta" in choice:
        return _chat(choice, usage)
    tokens = _plain_tokens(_get(choice, "logprobs", dict))
    text, finish = _get(choice, "text", str) or "", _get(choice, "finish_reason", str) or ""
    return Heard(text, (), tokens, finish, _usage(usage))


def _chat(choice: Body, usage: Body | None) -> Heard:
    delta = _get(choice, "delta", dict) or {}
    text, refusal = _get(delta, "content", str) or "", _get(delta, "refusal", str) or ""
    return Heard(
        text or refusal,
        tuple(_call(part) for part in _get(delta, "tool_calls", list) or []),
        _chat_tokens(_get(choice, "logprobs", dict)),
        _get(choice, "finish_reason", str) or "",
        _usage(usage),
        is_refusal=bool(refusal),
    )


def _call(part: object) -> CallPart:
    if not isinstance(part, dict):
        raise _garbled("tool_calls")
    index = _get(part, "index", int) or 0
    function = _get(part, "function", dict) or {}
    if not 0 <= index < MAX_CALLS:
        raise Unavailable(f"The engine made tool call {index}; at most {MAX_CALLS} are taken.")
    name, arguments = _get(function, "name", str), _get(function, "arguments", str)
    return CallPart(index, name or "", arguments or "")


def _usage(usage: Body | None) -> Usage | None:
    if usage is None:
        return None
    details = _get(usage, "prompt_tokens_details", dict) or {}
    counts = (
        _get(usage, "prompt_tokens", int),
        _get(usage, "completion_tokens", int) or 0,  # OpenAI leaves out what is none
        _get(details, "cached_tokens", int) or 0,
    )
    if counts[0] is None or not all(0 <= count <= MAX_COUNT for count in counts if count):
        raise _garbled("usage")
    return Usage(counts[0], counts[1], min(counts[2], counts[0]))


def _chat_tokens(logprobs: Body | None) -> tuple[TokenFacts, ...]:
    content = _get(logprobs or {}, "content", list) or []
    return tuple(_chat_token(item) for item in content)


def _chat_token(item: object) -> TokenFacts:
    if not isinstance(item, dict):
        raise _garbled("logprobs")
    candidates = _get(item, "top_logprobs", list) or []
    if not all(isinstance(candidate, dict) for candidate in candidates):
        raise _garbled("top_logprobs")
    return TokenFacts(
        _number(item.get("logprob")), _margin([_number(c.get("logprob")) for c in candidates])
    )


def _plain_tokens(logprobs: Body | None) -> tuple[TokenFacts, ...]:
    """Plain completions list chosen tokens and, beside them, a mapping of candidates each."""
    if not logprobs:
        return ()
    chosen = _get(logprobs, "token_logprobs", list) or []
    candidates = _get(logprobs, "top_logprobs", list) or [None] * len(chosen)
    if len(candidates) != len(chosen):
        raise _garbled("top_logprobs")
    return tuple(
        TokenFacts(_number(logprob), _margin(_values(named)))
        for logprob, named in zip(chosen, candidates, strict=True)
    )


def _values(named: object) -> list[float]:
    if named is None:
        return []
    if not isinstance(named, dict):
        raise _garbled("top_logprobs")
    return [_number(value) for value in named.values()]


def _margin(logprobs: Sequence[float]) -> float | None:
    if len(logprobs) < 2:
        return None
    best, second = sorted(logprobs, reverse=True)[:2]
    return math.exp(best) - math.exp(second)


def _number(value: object) -> float:
    """A log-probability: at most 0, up to rounding."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value < MAX_COUNT:
        raise _garbled("logprob")
    return min(float(max(value, -MAX_COUNT)), 0.0)


def _get(body: Body, name: str, kind: type[T]) -> T | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _garbled(name)
    if isinstance(value, str) and _is_half(value):
        raise _garbled(name)
    return value


def _is_half(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which nobody could send on."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _garbled(name: str) -> Unavailable:
    return Unavailable(f"The engine sent an event whose {name} is not OpenAI's.")
