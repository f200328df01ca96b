"""Building a GenerateRequest from the caller's words."""

import json

import pytest

from understudy import InvalidArgument, Message, Tool, ToolCall
from understudy.api.router.v1 import router_pb2
from understudy.api.types.v1 import types_pb2
from understudy.client.requests import GenerateParams, build_request

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}}


def test_messages_may_be_dataclasses_or_openai_mappings() -> None:
    call = {"id": "c1", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
    params: GenerateParams = {
        "messages": [
            Message("system", "Be brief."),
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "rain", "tool_call_id": "c1"},
        ]
    }
    from_mappings = build_request(params, "key").messages
    same = Message("assistant", tool_calls=(ToolCall("c1", "weather", '{"city":"Oslo"}'),))
    assert [message.role for message in from_mappings] == [1, 2, 3, 4]
    assert from_mappings[2] == build_request({"messages": [same]}, "key").messages[0]
    assert from_mappings[3].tool_call_id == "c1"


def test_tools_may_be_dataclasses_or_openai_mappings() -> None:
    function = {"name": "weather", "description": "Tells it.", "parameters": WEATHER}
    tools = [Tool("weather", "Tells it.", WEATHER), {"type": "function", "function": function}]
    first, second = build_request({"tools": tools}, "key").tools
    assert first == second
    assert json.loads(first.parameters_json) == WEATHER


@pytest.mark.parametrize(
    ("choice", "mode", "name"),
    [("auto", 1, ""), ("none", 2, ""), ("required", 3, ""), ("weather", 4, "weather")],
)
def test_tool_choice_is_a_mode_or_a_tool_name(choice: str, mode: int, name: str) -> None:
    built = build_request({"tool_choice": choice}, "key").tool_choice
    assert (built.mode, built.name) == (mode, name)


def test_what_the_caller_left_out_stays_unset() -> None:
    request = build_request({"prompt": "Once"}, "generated")
    assert request == router_pb2.GenerateRequest(
        prompt="Once", idempotency_key="generated", sampling=request.sampling
    )
    assert not request.sampling.ListFields()


def test_one_stop_text_is_one_text() -> None:
    assert build_request({"stop": "END"}, "key").sampling.stop == ["END"]
    assert build_request({"stop": ("a", "b")}, "key").sampling.stop == ["a", "b"]


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("temperature", "hot", "is str, not a number"),
        ("top_p", [1], "is list, not a number"),
        ("max_tokens", 1.5, "is float, not a whole number"),
        ("seed", True, "is bool, not a whole number"),
        ("stop", ("\ud800",), "half of a surrogate pair"),
        ("stop", (3,), "is int, not text"),
    ],
)
def test_sampling_of_another_type_is_refused_by_field(
    field: str, value: object, problem: str
) -> None:
    with pytest.raises(InvalidArgument, match=problem) as refused:
        build_request({field: value}, "key")  # type: ignore[misc]
    assert refused.value.metadata["field"].startswith(field)


def test_sampling_zeroes_are_sent_because_they_mean_something() -> None:
    sampling = build_request({"temperature": 0.0, "seed": 0, "max_tokens": 5}, "key").sampling
    assert sampling.HasField("temperature")
    assert sampling.HasField("seed")
    assert sampling.max_tokens == 5


def test_a_priority_travels_by_its_name() -> None:
    request = build_request({"prompt": "Once", "priority": "batch"}, "key")
    assert request.priority == types_pb2.PRIORITY_BATCH


def test_the_callers_idempotency_key_wins() -> None:
    assert build_request({"idempotency_key": "mine"}, "generated").idempotency_key == "mine"


def test_a_schema_may_be_a_mapping_or_json_text() -> None:
    text = json.dumps(WEATHER)
    assert build_request({"schema": WEATHER}, "key").response_schema_json == text
    assert build_request({"schema": text}, "key").response_schema_json == text


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"priority": "urgent"}, "priority"),
        ({"top_k": -3}, "top_k"),
        ({"seed": 2**64}, "seed"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "tool_calls": "x"}]}, "messages[0].tool_calls"),
        (
            {"messages": [{"role": "user", "tool_calls": [{}]}]},
            "messages[0].tool_calls[0].function",
        ),
        ({"tools": [{"function": {"name": 3}}]}, "tools[0].name"),
        ({"tools": [{"name": "x", "parameters": "no"}]}, "tools[0].parameters"),
        ({"schema": {"const": float("nan")}}, "schema"),
        ({"schema": {"const": object()}}, "schema"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_field(params: GenerateParams, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        build_request(params, "key")
    assert caught.value.metadata["field"] == field
    assert field in caught.value.message
