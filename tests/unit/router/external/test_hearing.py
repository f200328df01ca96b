"""Events of engines: what is read of them, and that nothing else passes for an answer."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.answers import Usage
from services.router.external.hearing import hear
from services.router.external.port import CallPart, EngineRefused, Heard, TokenFacts
from understudy.errors import PromptTooLong, ResourceExhausted, Unavailable, UnderstudyError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "content", "tool_calls", "function", "usage", "logprobs",
                 "top_logprobs", "logprob", "error", "text", "finish_reason", "index"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)  # fmt: skip


def heard(body: Any) -> Heard:
    return hear(json.dumps(body).encode(), "llm")


def choice(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, **fields}]}


def test_text_calls_reasons_and_counts_are_read() -> None:
    assert heard(choice(delta={"role": "assistant", "content": "Hi"})) == Heard(text="Hi")
    assert heard(choice(text="Hi", finish_reason="length")) == Heard(text="Hi", finish="length")
    function = {"name": "go", "arguments": '{"to"'}
    part = heard(choice(delta={"tool_calls": [{"index": 1, "function": function}]}))
    assert part == Heard(calls=(CallPart(1, "go", '{"to"'),))
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": None}
    assert heard({"choices": [], "usage": usage}) == Heard(usage=Usage(9, 2, 0))
    refused = heard(choice(delta={"refusal": "I cannot."}))
    assert (refused.text, refused.is_refusal) == ("I cannot.", True)


def test_margins_are_between_the_best_two_candidates() -> None:
    candidates = [{"logprob": math.log(p)} for p in (0.2, 0.7, 0.1)]
    token = {"logprob": math.log(0.7), "top_logprobs": candidates}
    (facts,) = heard(choice(delta={}, logprobs={"content": [token]})).tokens
    assert facts.margin == pytest.approx(0.5)
    alone = {"logprob": -0.1, "top_logprobs": candidates[:1]}
    (facts,) = heard(choice(delta={}, logprobs={"content": [alone]})).tokens
    assert facts == TokenFacts(-0.1, None)


def test_plain_completions_name_candidates_in_their_own_form() -> None:
    logprobs = {"token_logprobs": [-0.1, -3.0], "top_logprobs": [{"a": 0.0, "b": -50.0}, None]}
    first, second = heard(choice(text="ab", logprobs=logprobs)).tokens
    assert first.margin == pytest.approx(1.0)
    assert second == TokenFacts(-3.0, None)


@pytest.mark.parametrize(
    "body",
    [
        5,
        [],
        {"choices": 5},
        {"choices": [5]},
        {"usage": {"prompt_tokens": -1, "completion_tokens": 0}},
        {"usage": {}},
        {"usage": {"prompt_tokens": 10**400, "completion_tokens": 0}},
        choice(delta={"content": "half \ud83d"}),
        choice(delta={}, logprobs={"content": [{"logprob": 10**400}]}),
        choice(delta={}, logprobs={"content": [{"logprob": math.nan}]}),
        choice(delta={"content": 5}),
        choice(delta={"tool_calls": [5]}),
        choice(delta={"tool_calls": [{"index": 99}]}),
        choice(delta={"tool_calls": [{"index": True}]}),
        choice(delta={}, logprobs={"content": [{"logprob": "x"}]}),
        choice(text="a", logprobs={"token_logprobs": [-1.0], "top_logprobs": [{}, {}]}),
    ],
)
def test_what_is_not_openais_is_refused(body: Any) -> None:
    with pytest.raises(Unavailable):
        heard(body)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"error": {"message": "x", "code": 429}}, ResourceExhausted),
        ({"error": {"message": "maximum context length", "code": 400}}, PromptTooLong),
        ({"error": {"message": "x", "code": "server_error"}}, Unavailable),
        ({"error": "x"}, Unavailable),
        ({"object": "error", "message": "x", "code": 400}, EngineRefused),
    ],
)
def test_failures_inside_a_stream_have_their_names(body: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        heard(body)


@given(JSON)
def test_any_json_is_read_or_refused(body: Any) -> None:
    try:
        heard(body)
    except UnderstudyError:
        return


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        hear(data, "llm")
    except UnderstudyError:
        return
