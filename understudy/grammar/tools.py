"""The JSON Schema of "one call of one of these tools"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from understudy.errors import InvalidArgument
from understudy.grammar.schema import SCHEMA_MAPS, Json

_OF_THE_DOCUMENT: Final = ("$schema", "$id")
_LITERALS: Final = ("const", "enum", "default", "examples")


class ToolLike(Protocol):
    """A function the model may call: a name and the object schema of its arguments."""

    @property
    def name(self) -> str:
        """Function name."""

    @property
    def parameters(self) -> dict[str, Json]:
        """Object schema of the arguments; empty for none."""


def tools_schema(tools: Sequence[ToolLike], choice: str | None = None) -> dict[str, Json]:
    """Return the schema of `{"name": ..., "arguments": {...}}` for any tool, or for `choice` alone.

    Every tool lives under `$defs`, with its local references rewritten to that place. Arguments
    that a tool does not declare are not generated.
    """
    chosen = [tool for tool in tools if choice in (None, tool.name)]
    if not chosen:
        raise InvalidArgument(
            f"The tool choice names {choice!r}, which is not among the tools.",
            {"field": "tool_choice.name"},
        )
    definitions: dict[str, Json] = {
        f"tool{index}": _call_schema(tool, f"#/$defs/tool{index}/properties/arguments")
        for index, tool in enumerate(chosen)
    }
    return {
        "anyOf": [{"$ref": f"#/$defs/{name}"} for name in definitions],
        "$defs": definitions,
    }


def _call_schema(tool: ToolLike, root: str) -> Json:
    arguments = _rebase(dict(tool.parameters), root)
    assert isinstance(arguments, dict)
    if "additionalProperties" not in arguments and "patternProperties" not in arguments:
        arguments["additionalProperties"] = False
    arguments.setdefault("type", "object")
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _rebase(schema: Json, root: str) -> Json:
    """Return a copy whose local references start at `root` instead of the document."""
    if isinstance(schema, list):
        return [_rebase(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _rebase_keyword(key, value, root)
        for key, value in schema.items()
        if key not in _OF_THE_DOCUMENT
    }


def _rebase_keyword(keyword: str, value: Json, root: str) -> Json:
    if keyword == "$ref" and isinstance(value, str) and value.startswith("#"):
        return root + value[1:]
    if keyword in _LITERALS:
        return value
    if keyword in SCHEMA_MAPS and isinstance(value, dict):
        return {name: _rebase(schema, root) for name, schema in value.items()}
    return _rebase(value, root)
