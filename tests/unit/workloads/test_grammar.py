"""The grammar admits every gold answer it should, and only spans of the utterance."""

import json

import llguidance
import pytest

from understudy.workloads.snips.dataset import load_split
from understudy.workloads.snips.grammar import grammar_source
from understudy.workloads.workload import ToolCall


@pytest.fixture(scope="module")
def engine() -> llguidance.LLTokenizer:
    """One token per byte: what is tested is the language, whatever the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: index for index, char in enumerate([*alphabet, "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return llguidance.LLTokenizer(tokenizer.to_str(), eos_token=256)


def admits(engine: llguidance.LLTokenizer, utterance: str, answer: str) -> bool:
    matcher = llguidance.LLMatcher(engine, grammar_source(utterance))
    assert not matcher.is_error(), matcher.get_error()
    tokens = engine.tokenize_str(answer)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def test_gold_answers_are_admitted(engine: llguidance.LLTokenizer) -> None:
    rows = load_split("dev")[:150]
    assert all(admits(engine, row.text, row.gold.to_json()) for row in rows)


def test_quotes_and_backslashes_are_escaped(engine: llguidance.LLTokenizer) -> None:
    utterance = 'play "Back\\slash" now'
    call = ToolCall("PlayMusic", {"track": '"Back\\slash"'})
    assert json.loads(call.to_json())["arguments"]["track"] == '"Back\\slash"'
    assert admits(engine, utterance, call.to_json())


@pytest.mark.parametrize(
    "arguments",
    [
        {"track": "four"},
        {"track": " two three"},
        {"track": ""},
        {"city": "two three"},
        {"track": ["two", "three"]},
    ],
)
def test_other_answers_are_not(
    engine: llguidance.LLTokenizer, arguments: dict[str, str | list[str]]
) -> None:
    assert not admits(engine, "play two three", ToolCall("PlayMusic", arguments).to_json())


def test_a_repeatable_slot_takes_a_list(engine: llguidance.LLTokenizer) -> None:
    call = ToolCall("GetWeather", {"timeRange": ["today", "at noon"]})
    assert admits(engine, "weather today at noon", call.to_json())
