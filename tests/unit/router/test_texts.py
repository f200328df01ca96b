"""Text is released in whole characters, never a stop text, and however tokens were cut."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.texts import TextStream
from understudy.testing.tiny_tokenizer import EOS_ID, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def shown(text: str, stops: list[str], cuts: list[int]) -> list[str]:
    ids, stream, pieces = TOKENIZER.encode(text), TextStream(TOKENIZER, stops), []
    edges = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        pieces.append(stream.push(ids[start:end]))
    return [*pieces, stream.finish()]


@settings(deadline=None)
@given(st.text(max_size=30), st.lists(st.integers(0, 99), max_size=6))
def test_text_comes_out_as_it_went_in(text: str, cuts: list[int]) -> None:
    assert "".join(shown(text, [], cuts)) == text


@settings(deadline=None)
@given(
    st.text("ab", max_size=20),
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
    st.lists(st.integers(0, 99), max_size=6),
)
def test_output_ends_before_the_first_stop_text_however_it_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    found = "".join(shown(text, stops, cuts))
    assert text.startswith(found)
    assert not any(stop in found for stop in stops)
    if not any(stop in text for stop in stops):
        assert found == text


@settings(deadline=None)
@given(st.text("ab", max_size=20), st.integers(0, 20))
def test_a_replay_continues_exactly_where_the_first_stream_was(text: str, at: int) -> None:
    ids = TOKENIZER.encode(text)
    first = TextStream(TOKENIZER, ["bab"])
    seen = "".join(first.push([token]) for token in ids[:at])
    again = TextStream(TOKENIZER, ["bab"])
    assert again.push(ids[:at]) == seen


def test_characters_are_never_split_and_control_tokens_are_silent() -> None:
    stream = TextStream(TOKENIZER, [])
    first, *rest = TOKENIZER.encode("é")
    assert stream.push([first]) == ""
    assert stream.push([*rest, EOS_ID]) == "é"


def test_nothing_follows_a_stop() -> None:
    stream = TextStream(TOKENIZER, ["!"])
    assert stream.push(TOKENIZER.encode("Hi! you")) == "Hi"
    assert stream.is_stopped
    assert stream.push(TOKENIZER.encode("more")) + stream.finish() == ""
