"""Sealing, records and requests survive the way into the journal and back, or are refused."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router import records
from services.router.answers import Attempt, Decision, Delta, Finished, Usage
from services.router.policy import Path
from services.router.requests import (
    Message,
    Request,
    Sampling,
    Tool,
    ToolCall,
    request_from_json,
)
from services.router.sealing import Sealer, parse_key
from understudy.errors import FailedPrecondition, InvalidArgument
from understudy.workloads import Verdict

REQUEST = Request(
    model="auto",
    messages=(
        Message("user", "héllo"),
        Message("assistant", "", (ToolCall("1", "go", "{}"),)),
        Message("tool", "done", (), "1"),
    ),
    tools=(Tool("go", "Goes.", {"type": "object"}),),
    tool_mode="named",
    tool_name="go",
    sampling=Sampling(max_tokens=5, stop=("a", "b"), seed=2**63),
    idempotency_key="k",
)
SLM = Attempt(
    "slm", "s@1", "", Usage(10, 5, 3), 2, 0.4, 12, 1.5, 0.1, (Verdict("schema", True),), "w:1"
)
DECISION = Decision("llm", "low_confidence", "snips", 0.7, (SLM, SLM), 3.0, 1.1, "ab", True)
FINISHED = Finished("tool_calls", Usage(10, 5, 3), DECISION)


def test_requests_round_trip_and_their_digest_ignores_the_key() -> None:
    assert request_from_json(REQUEST.to_json()) == REQUEST
    assert REQUEST.digest() == Request(**{**_fields(), "idempotency_key": "other"}).digest()
    assert REQUEST.digest() != Request(**{**_fields(), "model": "llm"}).digest()


def _fields() -> dict[str, object]:
    return {name: getattr(REQUEST, name) for name in Request.__slots__}


def test_records_replay_to_what_happened() -> None:
    delta = Delta(0, "héllo", (ToolCall("1", "go", "{}"),))
    head = {"kind": "head", "request": REQUEST.to_json(), "request_id": "r1"}
    written = [
        head,
        records.attempt_record(SLM, "low_confidence"),
        records.path_record(Path("llm", "low_confidence")),
        records.delta_record(delta, [1, 2]),
        records.delta_record(Delta(1, "x"), [3]),
        records.finished_record(FINISHED),
    ]
    found = records.replay(json.loads(json.dumps(written)))
    assert (found.request, found.request_id) == (REQUEST, "r1")
    assert (found.trial, found.trial_reason) == (SLM, "low_confidence")
    assert found.path == Path("llm", "low_confidence")
    assert found.deltas == [delta, Delta(1, "x")]
    assert found.token_ids == [1, 2, 3]
    assert found.finished == FINISHED


@pytest.mark.parametrize("bad", [[], [{"kind": "head"}], [{"request": "{", "request_id": ""}]])
def test_foreign_records_are_refused(bad: list[dict[str, str]]) -> None:
    with pytest.raises(FailedPrecondition):
        records.replay(bad)


def test_unknown_kinds_are_refused() -> None:
    head = {"kind": "head", "request": REQUEST.to_json(), "request_id": "r1"}
    with pytest.raises(FailedPrecondition, match="poem"):
        records.replay([head, {"kind": "poem"}])


@settings(deadline=None)
@given(st.binary(max_size=64), st.text(max_size=10))
def test_sealed_bytes_open_only_in_their_place_and_unaltered(data: bytes, place: str) -> None:
    sealer = Sealer(bytes(32))
    sealed = sealer.seal(data, place)
    assert sealer.open(sealed, place) == data
    flipped = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for bad, where in ((flipped, place), (sealed, place + "x"), (sealed[:5], place)):
        with pytest.raises(FailedPrecondition):
            sealer.open(bad, where)
    with pytest.raises(FailedPrecondition):
        Sealer(b"\1" * 32).open(sealed, place)


def test_keys_are_base64_of_32_bytes() -> None:
    assert parse_key(base64.b64encode(bytes(32)).decode() + "\n") == bytes(32)
    for bad in ("%%%", base64.b64encode(bytes(16)).decode()):
        with pytest.raises(InvalidArgument):
            parse_key(bad)
