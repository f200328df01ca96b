"""What an engine's refusal becomes: HTTP status and error body -> a named error; pure.

The engine's sentence goes to the caller of a request that it found wrong, never into a log: it may
quote the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from services.router.external.port import EngineMisfit, EngineRefused
from understudy.errors import PromptTooLong, ResourceExhausted, Unavailable, UnderstudyError

MAX_SENTENCE_CHARS: Final = 300
MAX_RETRY_AFTER_S: Final = 3600.0
LEAST_RETRY_AFTER_S: Final = 0.1
_TOO_LONG: Final = ("context_length_exceeded", "maximum context length", "max_model_len")


def failure(
    status: int, headers: Mapping[str, str], data: bytes, pool: str, now: datetime | None = None
) -> UnderstudyError:
    """Return the error of a response that is no answer; header names are in lower case."""
    metadata = {"pool": pool, "status": str(status)}
    if status == 429:
        return ResourceExhausted(
            f"The engine of the pool {pool!r} is at its limit.",
            metadata,
            retry_after_s=retry_after_s(headers, now or datetime.now(UTC)),
        )
    if status in (400, 413, 422):
        return _refused(status, data, metadata)
    if status in (401, 403):
        return EngineMisfit(
            f"The engine of the pool {pool!r} refuses this router's key (HTTP {status}).", metadata
        )
    if status == 404:
        return EngineMisfit(
            f"The engine of the pool {pool!r} does not know the model or the path (HTTP 404); "
            "compare the pool's model and URL with what the engine serves.",
            metadata,
        )
    if status >= 500 or status == 408:
        return Unavailable(f"The engine of the pool {pool!r} failed (HTTP {status}).", metadata)
    return EngineMisfit(
        f"The engine of the pool {pool!r} answered with HTTP {status}, which is no answer.",
        metadata,
    )


def stream_failure(body: Mapping[str, object], pool: str) -> UnderstudyError:
    """Return the error of an event that reports a failure in the middle of a stream."""
    error = body.get("error")
    described = error if isinstance(error, dict) else body
    status = described.get("code", body.get("status"))
    if not isinstance(status, int) or isinstance(status, bool) or not 400 <= status < 600:
        status = 500
    return failure(status, {}, json.dumps(body).encode(), pool)


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float:
    """Return the delay an engine asks for, bounded; 1 s where it names none that can be read."""
    try:
        if "retry-after-ms" in headers:
            delay_s = float(headers["retry-after-ms"]) / 1000
        else:
            delay_s = _delay_s(headers.get("retry-after", "1"), now)
    except (ValueError, TypeError, OverflowError):
        return 1.0
    is_number = delay_s == delay_s  # NaN differs from itself
    return min(max(delay_s, LEAST_RETRY_AFTER_S), MAX_RETRY_AFTER_S) if is_number else 1.0


def _delay_s(text: str, now: datetime) -> float:
    try:
        return float(text)
    except ValueError:
        when = parsedate_to_datetime(text)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - now.timestamp()


def _refused(status: int, data: bytes, metadata: dict[str, str]) -> UnderstudyError:
    sentence, code = _described(data)
    told = f" {sentence}" if sentence else ""
    if status == 413 or any(mark in f"{code} {sentence}" for mark in _TOO_LONG):
        return PromptTooLong(
            f"The prompt does not fit the engine of the pool {metadata['pool']!r}.{told}",
            {**metadata, "field": "messages"},
        )
    return EngineRefused(
        f"The engine of the pool {metadata['pool']!r} refused the request (HTTP {status}).{told}",
        metadata,
    )


def _described(data: bytes) -> tuple[str, str]:
    """The sentence and code of an error body in any of the forms engines use."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return "", ""
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    if not isinstance(body, dict):
        return "", ""
    sentence = next(
        (text for key in ("message", "detail", "error") if isinstance(text := body.get(key), str)),
        "",
    )
    return " ".join(sentence.split())[:MAX_SENTENCE_CHARS], str(body.get("code") or "")
