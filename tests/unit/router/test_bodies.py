"""OpenAI bodies: what is no text and no number is refused, never a bug."""

from __future__ import annotations

import json

import pytest

from services.router.http.bodies import chat_request, completion_request, parse_body
from services.router.requests import MAX_MESSAGES, MAX_TOOLS
from understudy.errors import InvalidArgument


@pytest.mark.parametrize(
    "data",
    [
        b'{"prompt":"\\ud800"}',
        b'{"prompt":"x","stop":"\\udfff"}',
        b'{"tools":[{"function":{"description":"\\uD800"}}]}',
        b'{"\\ud800":1}',
        b'{"prompt":"\xed\xa0\x80"}',
    ],
)
def test_half_a_surrogate_pair_anywhere_in_a_body_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_body(data)
    assert caught.value.metadata["field"] == "body"


def test_whole_surrogate_pairs_are_text() -> None:
    assert parse_body(b'{"prompt":"\\ud83d\\ude00"}') == {"prompt": "\U0001f600"}


@pytest.mark.parametrize("data", [b'{"temperature":NaN}', b'{"top_p":-Infinity}'])
def test_constants_that_json_does_not_know_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match="not JSON"):
        parse_body(data)


@pytest.mark.parametrize("name", ["temperature", "top_p"])
def test_a_number_of_four_hundred_digits_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        completion_request(parse_body(f'{{"prompt":"x","{name}":{"9" * 400}}}'.encode()), "")
    assert caught.value.metadata["field"] == name


def test_counts_are_checked_before_schemas_are_parsed() -> None:
    turns = [{"role": "user", "content": "x"}]
    odd_tool = {"type": "function", "function": {"name": "go", "parameters": {"not": {}}}}
    for body, field in (
        ({"messages": turns, "tools": [odd_tool] * (MAX_TOOLS + 1)}, "tools"),
        ({"messages": turns * (MAX_MESSAGES + 1), "tools": [odd_tool]}, "messages"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            chat_request(parse_body(json.dumps(body).encode()), "")
        assert caught.value.metadata["field"] == field
