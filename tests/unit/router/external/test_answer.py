"""What an engine said, put into a transcript: margins only where they are complete."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.answers import Usage
from services.router.external import answer
from services.router.external.answer import EngineAnswer
from services.router.external.asking import call_text
from services.router.external.port import CallPart, Heard, TokenFacts
from services.router.transcripts import Transcript
from understudy.errors import Unavailable

SURE = TokenFacts(-0.1, 0.9)


def settled(*events: Heard) -> Transcript:
    said, transcript = EngineAnswer(), Transcript([], 0.0)
    for event in events:
        said.add(event)
    said.settle(transcript, 5)
    return transcript


def test_margins_of_all_tokens_are_evidence() -> None:
    said = Heard("Hi", tokens=(SURE,)), Heard(" you", tokens=(SURE, SURE))
    for num_tokens in (3, 4):
        usage = Usage(7, num_tokens, 2)
        transcript = settled(*said, Heard(finish="stop", usage=usage))
        assert transcript.margins == [0.9] * 3
        assert transcript.evidence().is_finished
        assert transcript.usage(99) == usage
        assert transcript.computed_positions == 5 + num_tokens
        assert not transcript.gaps


@pytest.mark.parametrize(
    "events",
    [
        (Heard("Hi"),),
        (Heard("Hi", tokens=(TokenFacts(-0.1, None),)),),
        (Heard("Hi", tokens=(SURE,)), Heard("you")),
        (Heard("Hi", tokens=(SURE, SURE, SURE)),),
    ],
)
def test_margins_with_holes_are_none(events: tuple[Heard, ...]) -> None:
    transcript = settled(*events, Heard(finish="stop", usage=Usage(7, 2)))
    assert transcript.gaps == {"margins"}
    assert transcript.margins == []


def test_without_counts_events_are_counted_and_the_gap_says_so() -> None:
    transcript = settled(Heard("a"), Heard("b"), Heard(finish="length"))
    assert transcript.usage(5) == Usage(5, 2)
    assert "usage" in transcript.gaps
    assert transcript.finish_reason == "length"


def test_calls_are_put_together_whatever_their_pieces() -> None:
    said = EngineAnswer()
    for part in (CallPart(0, "go", '{"to"'), CallPart(0, "", ':"x"}')):
        said.add(Heard(calls=(part,)))
    assert said.text == '{"name":"go","arguments":{"to":"x"}}'
    said.add(Heard(calls=(CallPart(1, "stop", ""),)))
    assert [call["name"] for call in json.loads(said.text)] == ["go", "stop"]


@given(st.text(), st.text())
def test_a_call_is_json_whatever_the_engine_wrote(name: str, arguments: str) -> None:
    assert json.loads(call_text(name, arguments))["name"] == name


def test_an_endless_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "MAX_ANSWER_CHARS", 10)
    said = EngineAnswer()
    said.add(Heard("x" * 10))
    with pytest.raises(Unavailable, match="more than 10"):
        said.add(Heard(calls=(CallPart(0, "go", "x"),)))
