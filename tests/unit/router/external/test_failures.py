"""Refusals of engines: each has a name, a bounded sentence and a delay that can be trusted."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from services.router.external.failures import MAX_SENTENCE_CHARS, failure, retry_after_s
from services.router.external.port import EngineMisfit, EngineRefused
from understudy.errors import PromptTooLong, ResourceExhausted, Unavailable

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "delay_s"),
    [
        ({}, 1.0),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0"}, 0.1),
        ({"retry-after": "1e99"}, 3600.0),
        ({"retry-after": "nan"}, 1.0),
        ({"retry-after": "soon"}, 1.0),
        ({"retry-after": "-5"}, 0.1),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": format_datetime(NOW.replace(minute=1), usegmt=True)}, 60.0),
        ({"retry-after": "Sun, 01 Nov 2026 12:00:30"}, 30.0),
    ],
)
def test_delays_are_read_and_bounded(headers: dict[str, str], delay_s: float) -> None:
    assert retry_after_s(headers, NOW) == pytest.approx(delay_s)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, EngineMisfit), (400, EngineRefused), (401, EngineMisfit), (403, EngineMisfit),
        (404, EngineMisfit), (408, Unavailable), (413, PromptTooLong), (418, EngineMisfit),
        (422, EngineRefused), (429, ResourceExhausted), (500, Unavailable), (503, Unavailable),
    ],
)  # fmt: skip
def test_every_status_has_a_name(status: int, kind: type[Exception]) -> None:
    error = failure(status, {}, b"", "llm")
    assert type(error) is kind
    assert (error.metadata["pool"], error.metadata["status"]) == ("llm", str(status))


def test_an_engines_sentence_is_bounded_and_one_line() -> None:
    error = failure(400, {}, b'{"error":{"message":"a\\n' + b"b" * 999 + b'"}}', "llm")
    assert "a b" in error.message
    assert len(error.message) < MAX_SENTENCE_CHARS + 80


@pytest.mark.parametrize("data", [b"", b"[", b"[]", b'{"error":5}', b"\xff", b'"text"'])
def test_bodies_of_any_form_are_survived(data: bytes) -> None:
    assert isinstance(failure(400, {}, data, "llm"), EngineRefused)
