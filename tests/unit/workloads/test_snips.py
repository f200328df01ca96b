"""The SNIPS workload: prompt, answers, verifiers."""

import pytest

from understudy.errors import InvalidArgument
from understudy.text.tokenizer import prompt_text
from understudy.workloads import ToolCall, find_workload

SNIPS = find_workload("snips")
MESSAGES = [{"role": "user", "content": "Play Stereo by Jonathan Davis on Deezer"}]
GOOD = '{"name":"PlayMusic","arguments":{"track":"Stereo","artist":"Jonathan Davis"}}'


def test_the_prompt_is_the_last_user_turn_alone() -> None:
    earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    assert prompt_text(SNIPS.prompt(earlier + MESSAGES)) == (
        "<|im_start|>user\nPlay Stereo by Jonathan Davis on Deezer<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("messages", [[], [{"role": "system", "content": "x"}]])
def test_a_request_without_user_message_is_refused(messages: list[dict[str, str]]) -> None:
    with pytest.raises(InvalidArgument, match="no user message"):
        SNIPS.prompt(messages)


def test_an_endless_utterance_is_refused_with_the_limit() -> None:
    with pytest.raises(InvalidArgument, match="2001 characters; snips takes 2000"):
        SNIPS.prompt([{"role": "user", "content": "x" * 2001}])


def test_an_answer_reads_back_as_it_was_written() -> None:
    assert SNIPS.parse(GOOD).to_json() == GOOD


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("{", "not JSON"),
        ("[]", "not an object of name and arguments"),
        ('{"name":"Sing","arguments":{}}', "'Sing', which is not a tool"),
        ('{"name":"PlayMusic","arguments":[]}', "not an object"),
        ('{"name":"PlayMusic","arguments":{"city":"Rome"}}', "no argument 'city'"),
        ('{"name":"PlayMusic","arguments":{"track":""}}', "unusable value"),
        ('{"name":"PlayMusic","arguments":{"track":["a","b"]}}', "unusable value"),
        ('{"name":"PlayMusic","arguments":{"track":"a","track":"b"}}', "repeats the keys"),
    ],
)
def test_a_bad_answer_is_refused_by_name(text: str, finding: str) -> None:
    with pytest.raises(InvalidArgument, match=finding):
        SNIPS.parse(text)


def test_a_good_answer_passes_every_verifier() -> None:
    assert all(verdict.passed for verdict in SNIPS.verify(MESSAGES, GOOD))


def test_values_from_elsewhere_fail_the_span_verifier() -> None:
    answer = ToolCall("PlayMusic", {"track": "Mono"}).to_json()
    failed = [v.verifier for v in SNIPS.verify(MESSAGES, answer) if not v.passed]
    assert "spans" in failed


def test_two_arguments_that_claim_the_same_words_fail() -> None:
    answer = ToolCall("PlayMusic", {"track": "Stereo", "album": "Stereo"}).to_json()
    failed = [v.verifier for v in SNIPS.verify(MESSAGES, answer) if not v.passed]
    assert failed == ["disjoint"]


def test_an_unreadable_answer_fails_the_schema_verifier_only() -> None:
    assert [v.verifier for v in SNIPS.verify(MESSAGES, "nonsense")] == ["schema"]
