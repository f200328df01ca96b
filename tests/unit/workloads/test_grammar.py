"""The grammar admits every gold answer it should, and only spans of the utterance."""

import json
import random

import llguidance
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from understudy.workloads.snips.dataset import load_split
from understudy.workloads.snips.grammar import MAX_TRACKED_WORDS, grammar_source
from understudy.workloads.workload import ToolCall

END = 256
CLOSING = sorted(pre_tokenizers.ByteLevel.alphabet()).index("}")


@pytest.fixture(scope="module")
def engine() -> llguidance.LLTokenizer:
    """One token per byte: what is tested is the language, whatever the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: index for index, char in enumerate([*alphabet, "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return llguidance.LLTokenizer(tokenizer.to_str(), eos_token=END)


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
        {"track": "two", "album": "two three"},
        {"music_item": ["two"]},
    ],
)
def test_other_answers_are_not(
    engine: llguidance.LLTokenizer, arguments: dict[str, str | list[str]]
) -> None:
    assert not admits(engine, "play two three", ToolCall("PlayMusic", arguments).to_json())


def test_a_repeatable_slot_takes_a_list(engine: llguidance.LLTokenizer) -> None:
    call = ToolCall("GetWeather", {"timeRange": ["today", "at noon"]})
    assert admits(engine, "weather today at noon", call.to_json())


def test_a_slot_appears_once(engine: llguidance.LLTokenizer) -> None:
    answer = '{"name":"PlayMusic","arguments":{"track":"two","track":"three"}}'
    assert not admits(engine, "play two three", answer)


def test_a_word_that_occurs_twice_may_be_used_twice(engine: llguidance.LLTokenizer) -> None:
    call = ToolCall("PlayMusic", {"track": "one", "album": "one"})
    assert admits(engine, "play one by one", call.to_json())
    assert not admits(engine, "play one by two", call.to_json())


def test_words_beyond_the_tracked_ones_are_still_admitted(engine: llguidance.LLTokenizer) -> None:
    utterance = " ".join(f"w{number}" for number in range(MAX_TRACKED_WORDS + 20))
    call = ToolCall("PlayMusic", {"track": f"w{MAX_TRACKED_WORDS + 10} w{MAX_TRACKED_WORDS + 11}"})
    assert admits(engine, utterance, call.to_json())


@pytest.mark.parametrize("seed", range(12))
def test_no_choice_leads_into_a_dead_end(engine: llguidance.LLTokenizer, seed: int) -> None:
    generator = random.Random(seed)
    utterance = " ".join(f"w{number}" for number in range(1 + seed % 4))
    matcher = llguidance.LLMatcher(engine, grammar_source(utterance))
    while not matcher.is_stopped():
        mask = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed = np.flatnonzero(mask)
        # Closing last explores the longest answers.
        choices = [int(token) for token in allowed if token != END] or [END]
        opening = [token for token in choices if token != CLOSING] or choices
        assert choices
        assert matcher.consume_token(generator.choice(opening))
    assert matcher.is_accepting()
