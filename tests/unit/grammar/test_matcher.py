"""Matchers over the byte vocabulary: masks, forced tokens, rollback, forks."""

from __future__ import annotations

import json
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from understudy.errors import FailedPrecondition, InvalidArgument, UnsupportedSchema
from understudy.grammar import (
    Compiler,
    GrammarSource,
    Matcher,
    count_allowed,
    source_hash,
    validate,
)
from understudy.grammar.schema import Json

EOS_ID = 0


def tokenizer_json() -> str:
    """A byte-level tokenizer: token 0 ends, the rest is one printable character each."""
    pieces = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({text: i for i, text in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return str(tokenizer.to_str())


TOKENIZER = Tokenizer.from_str(tokenizer_json())


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


def decode(ids: list[int]) -> str:
    return str(TOKENIZER.decode(ids))


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(tokenizer_json(), eos_ids=[EOS_ID])


def matcher(compiler: Compiler, schema: object) -> Matcher:
    return compiler.compile(GrammarSource("json_schema", json.dumps(schema))).matcher()


def allowed(mask: np.ndarray) -> list[int]:
    return list(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")))


COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


def test_forced_tokens_are_what_the_schema_dictates(compiler: Compiler) -> None:
    found = matcher(compiler, COLOUR)
    assert decode(found.forced()) == '{"colour":"'
    found.accept_many(found.forced())
    assert found.forced() == []
    assert {decode([i]) for i in allowed(found.mask())} == {"r", "g"}
    assert count_allowed(found.mask()) == 2


def test_a_complete_answer_stops_the_matcher_and_only_the_end_may_follow(
    compiler: Compiler,
) -> None:
    found = matcher(compiler, COLOUR)
    found.accept_many(encode('{"colour":"red"}'))
    assert found.is_accepting and found.is_stopped
    assert allowed(found.mask()) == [EOS_ID]


def test_a_token_outside_the_grammar_is_refused_and_changes_nothing(compiler: Compiler) -> None:
    found = matcher(compiler, COLOUR)
    with pytest.raises(InvalidArgument, match="position 1"):
        found.accept_many(encode("{x"))
    assert decode(found.forced()) == '{"colour":"'


def test_rollback_restores_the_mask(compiler: Compiler) -> None:
    found = matcher(compiler, COLOUR)
    found.accept_many(found.forced())
    before = found.mask().copy()
    found.accept_many(encode('red"}'))
    found.rollback(5)
    assert not found.is_stopped
    np.testing.assert_array_equal(found.mask(), before)
    with pytest.raises(ValueError, match="fewer than"):
        found.rollback(1000)


def test_forks_are_independent(compiler: Compiler) -> None:
    first = matcher(compiler, COLOUR)
    first.accept_many(first.forced())
    second = first.fork()
    second.accept_many(encode("red"))
    assert {decode([i]) for i in allowed(first.mask())} == {"r", "g"}
    assert decode(second.forced()) == '"}'


def test_lark_substring_grammar_allows_only_spans_of_the_utterance(compiler: Compiler) -> None:
    lark = 'start: SUB "!"\nSUB: %regex {"substring_words": "play some jazz"}'
    found = compiler.compile(GrammarSource("lark", lark)).matcher()
    found.accept_many(encode("some jazz!"))
    assert found.is_stopped
    other = compiler.compile(GrammarSource("lark", lark)).matcher()
    with pytest.raises(InvalidArgument):
        other.accept_many(encode("rock!"))


def test_the_mask_covers_the_width_of_the_logits() -> None:
    wide = Compiler(tokenizer_json(), eos_ids=[EOS_ID], vocab_size=300)
    assert wide.vocab_size == 300
    found = wide.compile(GrammarSource("lark", 'start: "a"')).matcher()
    assert found.mask().shape == (10,)
    out = np.zeros(10, dtype=np.int32)
    assert found.mask(out) is out and count_allowed(out) == 1
    with pytest.raises(ValueError, match="int32"):
        found.mask(np.zeros(3, dtype=np.int32))


def test_grammars_are_compiled_once_and_the_cache_is_bounded() -> None:
    small = Compiler(tokenizer_json(), eos_ids=[EOS_ID], max_cached=1)
    first = small.compile(GrammarSource("lark", 'start: "a"'))
    assert small.compile(GrammarSource("lark", 'start: "a"')) is first
    small.compile(GrammarSource("lark", 'start: "b"'))
    assert small.compile(GrammarSource("lark", 'start: "a"')) is not first


def test_a_malformed_lark_grammar_is_refused_with_its_line(compiler: Compiler) -> None:
    with pytest.raises(UnsupportedSchema, match="lexer error"):
        compiler.compile(GrammarSource("lark", "start: /a"))


def test_an_unusable_tokenizer_is_refused() -> None:
    with pytest.raises(FailedPrecondition):
        Compiler('{"model": 1}', eos_ids=[0])


def test_hash_depends_on_kind_and_source() -> None:
    hashes = {source_hash("lark", "a"), source_hash("json_schema", "a"), source_hash("lark", "b")}
    assert len(hashes) == 3
    assert GrammarSource("lark", "a").hash == source_hash("lark", "a")


def test_oversized_sources_are_refused() -> None:
    with pytest.raises(UnsupportedSchema, match="262144"):
        GrammarSource("lark", "x" * (256 * 1024 + 1))


properties = st.dictionaries(
    st.text(string.ascii_lowercase, min_size=1, max_size=6),
    st.sampled_from(
        [
            {"type": "integer", "minimum": 0, "maximum": 99},
            {"type": "boolean"},
            {"enum": ["a", "bc", "日本"]},
            {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
        ]
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=40, deadline=None)
@given(properties=properties, data=st.data())
def test_any_walk_through_the_masks_satisfies_the_independent_validator(
    compiler: Compiler, properties: dict[str, Json], data: st.DataObject
) -> None:
    schema: dict[str, Json] = {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }
    found, ids = matcher(compiler, schema), list[int]()
    while not found.is_stopped:
        chosen = found.forced() or [data.draw(st.sampled_from(allowed(found.mask())))]
        found.accept_many(chosen)
        ids += chosen
    assert validate(schema, json.loads(decode(ids))) == ""
