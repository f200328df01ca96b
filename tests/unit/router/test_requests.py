"""What a request may hold: every text that reaches a prompt or the journal counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.router.requests import (
    MAX_MESSAGES,
    MAX_TOOL_CALLS,
    Message,
    Request,
    Sampling,
    Tool,
    ToolCall,
    check_request,
)
from understudy.errors import InvalidArgument

LIMIT = 1000
LONG = "x" * (LIMIT + 1)
ASKED = Request(messages=(Message("user", "Hello?"),))
HALF = "\ud800"


def calling(call: ToolCall) -> Request:
    return Request(messages=(Message("assistant", "", (call,)), Message("tool", "done", (), "1")))


def refused_field(request: Request) -> str:
    with pytest.raises(InvalidArgument) as caught:
        check_request(request, LIMIT)
    return caught.value.metadata["field"]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (Request(prompt=LONG), "prompt"),
        (Request(messages=(Message("user", LONG),)), "messages"),
        (calling(ToolCall(LONG, "go", "{}")), "messages"),
        (calling(ToolCall("1", LONG, "{}")), "messages"),
        (calling(ToolCall("1", "go", LONG)), "messages"),
        (Request(messages=(Message("tool", "done", (), LONG),)), "messages"),
        (replace(ASKED, tools=(Tool("go", LONG, {}),)), "tools"),
        (replace(ASKED, tools=(Tool("go", "", {"description": LONG}),)), "tools"),
        (replace(ASKED, schema_json=f'{{"description":"{LONG}"}}'), "response_schema_json"),
        (replace(ASKED, workload=LONG), "workload"),
        (replace(ASKED, model=LONG), "model"),
        (replace(ASKED, tool_name=LONG), "tool_choice.name"),
    ],
)
def test_every_text_counts_and_the_largest_part_is_named(request_: Request, field: str) -> None:
    assert refused_field(request_) == field


def test_texts_count_together() -> None:
    half = "x" * (LIMIT // 2)
    many = replace(ASKED, messages=(Message("user", half),), tools=(Tool("go", half, {}),))
    assert refused_field(many) in ("messages", "tools")
    check_request(replace(many, tools=()), LIMIT)


def test_messages_and_calls_are_counted() -> None:
    turns = (Message("user", "x"),) * (MAX_MESSAGES + 1)
    with pytest.raises(InvalidArgument, match=f"at most {MAX_MESSAGES}"):
        check_request(Request(messages=turns), 10**9)
    calls = (ToolCall("1", "go", "{}"),) * (MAX_TOOL_CALLS // 2 + 1)
    twice = (Message("assistant", "x", calls),) * 2
    with pytest.raises(InvalidArgument, match=f"at most {MAX_TOOL_CALLS}"):
        check_request(Request(messages=twice), 10**9)


@pytest.mark.parametrize(
    "bad",
    [
        Request(prompt=HALF),
        calling(ToolCall(HALF, "go", "{}")),
        calling(ToolCall("1", "go", HALF)),
        replace(ASKED, tools=(Tool("go", HALF, {}),)),
        replace(ASKED, tools=(Tool("go", "", {"description": HALF}),)),
        replace(ASKED, schema_json=f'{{"description":"{HALF}"}}'),
        replace(ASKED, sampling=Sampling(stop=(HALF,))),
        replace(ASKED, idempotency_key=HALF),
    ],
)
def test_half_a_surrogate_pair_is_refused_wherever_it_stands(bad: Request) -> None:
    with pytest.raises(InvalidArgument, match="surrogate"):
        check_request(bad, LIMIT)


@pytest.mark.parametrize("top_k", [-1, 2**32])
def test_a_top_k_that_no_worker_could_be_told_is_refused(top_k: int) -> None:
    assert refused_field(replace(ASKED, sampling=Sampling(top_k=top_k))) == "sampling.top_k"
