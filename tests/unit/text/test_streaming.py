"""Streamed text never splits a character and adds up to the whole."""

from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.text.streaming import Detokeniser
from understudy.text.tokenizer import Tokenizer

# The vocabulary has no tokens for the lead bytes of later planes; those become U+FFFD.
KNOWN = st.characters(min_codepoint=32, max_codepoint=0x1FAFF, exclude_categories=["Cs", "Cc"])


@settings(max_examples=60, deadline=None)
@given(st.text(KNOWN, max_size=30))
def test_pieces_add_up_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    stream = Detokeniser(tokenizer)
    pieces = [stream.push([token]) for token in tokenizer.encode(text)]
    assert "".join(pieces) + stream.finish() == text


def test_a_character_waits_for_its_last_byte(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("𓀀")
    assert len(tokens) > 1
    stream = Detokeniser(tokenizer)
    assert [stream.push([token]) for token in tokens[:-1]] == [""] * (len(tokens) - 1)
    assert stream.push(tokens[-1:]) == "𓀀"


def test_an_unfinished_character_becomes_the_replacement_character(tokenizer: Tokenizer) -> None:
    stream = Detokeniser(tokenizer)
    assert stream.push(tokenizer.encode("𓀀")[:1]) == ""
    assert stream.finish() == "\ufffd"
