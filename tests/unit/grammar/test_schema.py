"""Schemas from callers: what is refused, and how the refusal reads."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from understudy.errors import InvalidArgument, UnsupportedSchema
from understudy.grammar import check_schema, tools_schema, validate
from understudy.grammar.schema import UNSUPPORTED_KEYWORDS, Json


@dataclass(frozen=True)
class Tool:
    name: str
    parameters: dict[str, Json] = field(default_factory=dict)


def test_tool_properties_may_be_called_like_keywords() -> None:
    shared = {"type": "string", "enum": ["a"]}
    names = ("default", "examples", "enum", "const", "$id", "$schema")
    schema: dict[str, Json] = {
        "type": "object",
        "properties": {name: {"$ref": "#/$defs/shared"} for name in names},
        "required": list(names),
        "$defs": {"shared": shared},
    }
    call = {"name": "go", "arguments": dict.fromkeys(names, "a")}
    rebased = tools_schema([Tool("go", schema)])
    assert check_schema(json.dumps(rebased)) == rebased
    assert not validate(rebased, call)
    assert validate(rebased, {"name": "go", "arguments": {**dict.fromkeys(names, "a"), "$id": 1}})


@pytest.mark.parametrize("keyword", sorted(UNSUPPORTED_KEYWORDS))
def test_every_unsupported_keyword_is_named(keyword: str) -> None:
    schema = {"type": "object", "properties": {"inner": {keyword: {}}}}
    with pytest.raises(UnsupportedSchema) as caught:
        check_schema(json.dumps(schema))
    assert caught.value.metadata["keyword"] == keyword
    assert caught.value.metadata["pointer"] == f"/properties/inner/{keyword}"


def test_a_property_may_be_called_like_a_keyword() -> None:
    schema = {"type": "object", "properties": {"not": {"enum": [{"if": 1}]}}}
    assert check_schema(json.dumps(schema)) == schema


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "3",
        '{"type": "foo"}',
        '{"properties": 5}',
        '{"pattern": "("}',
        '{"$ref": "#/no"}',
    ],
)
def test_malformed_schemas_are_refused(text: str) -> None:
    with pytest.raises(UnsupportedSchema) as caught:
        check_schema(text, field="tools[0].parameters_json")
    assert caught.value.metadata["field"] == "tools[0].parameters_json"


def test_nothing_is_fetched() -> None:
    with pytest.raises(UnsupportedSchema, match="nothing is fetched"):
        check_schema('{"items": {"$ref": "http://127.0.0.1:1/secret"}}')


def test_deep_and_large_schemas_are_refused() -> None:
    deep: Json = {}
    for _ in range(100):
        deep = {"items": deep}
    with pytest.raises(UnsupportedSchema, match="64 levels"):
        check_schema(json.dumps(deep))
    with pytest.raises(UnsupportedSchema, match="bytes"):
        check_schema(json.dumps({"description": "x" * 300_000}))
    with pytest.raises(UnsupportedSchema, match="not JSON"):
        check_schema("[" * 200_000)


def test_validation_names_the_place_and_the_keyword() -> None:
    schema: dict[str, Json] = {"properties": {"day": {"type": "string", "format": "date"}}}
    assert validate(schema, {"day": "2026-11-21"}) == ""
    assert validate(schema, {"day": "soon"}) == "At /day: the keyword 'format' is not satisfied."


def test_tool_schema_accepts_exactly_one_call_of_one_tool() -> None:
    weather = Tool(
        "weather",
        {"properties": {"city": {"$ref": "#/$defs/name"}}, "$defs": {"name": {"type": "string"}}},
    )
    schema = tools_schema([weather, Tool("stop")])
    assert validate(schema, {"name": "weather", "arguments": {"city": "Kiel"}}) == ""
    assert validate(schema, {"name": "stop", "arguments": {}}) == ""
    assert validate(schema, {"name": "weather", "arguments": {"city": 3}})
    assert validate(schema, {"name": "stop", "arguments": {"city": "Kiel"}})
    assert validate(schema, {"name": "other", "arguments": {}})
    assert check_schema(json.dumps(schema)) == schema


def test_named_choice_leaves_one_tool_and_must_exist() -> None:
    tools = [Tool("go"), Tool("stop")]
    assert validate(tools_schema(tools, "go"), {"name": "stop", "arguments": {}})
    with pytest.raises(InvalidArgument, match="'fly'"):
        tools_schema(tools, "fly")
