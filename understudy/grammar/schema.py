"""JSON Schemas from callers: refused early with the keyword named, and checked independently.

Grammar engines drop keywords they do not know; here every keyword that constrains an instance is
either enforceable or refused. Nothing is ever fetched: only references inside the schema resolve.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Final

import jsonschema_rs

from understudy.errors import UnsupportedSchema
from understudy.grammar.source import MAX_SOURCE_BYTES

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Schema = Mapping[str, Json]

MAX_DEPTH: Final = 64
UNSUPPORTED_KEYWORDS: Final = frozenset(
    {
        "$dynamicRef",
        "$recursiveRef",
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "maxContains",
        "minContains",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
    }
)
_SCHEMA_LISTS: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
SCHEMA_MAPS: Final = frozenset({"$defs", "definitions", "patternProperties", "properties"})
_SCHEMAS: Final = frozenset({"additionalProperties", "items"})


def check_schema(text: str, field: str = "response_schema_json") -> dict[str, Json]:
    """Parse a caller's JSON Schema (Draft 2020-12, an object) or refuse it by name.

    Raises UnsupportedSchema naming the keyword and its JSON pointer; `field` names the request
    field in the error's metadata.
    """
    schema = _parse(text, field)
    for pointer, keyword in _keywords(schema, "", 0, field):
        if keyword in UNSUPPORTED_KEYWORDS:
            raise UnsupportedSchema(
                f"The schema keyword {keyword!r} at {pointer} cannot be enforced while decoding; "
                "express the constraint without it.",
                {"field": field, "keyword": keyword, "pointer": pointer},
            )
    _validator(schema, field)
    return schema


def validate(schema: Schema, instance: Json, field: str = "response_schema_json") -> str:
    """Check an answer against its schema; return one sentence on the first fault, empty if none."""
    error = next(iter(_validator(schema, field).iter_errors(instance)), None)
    if error is None:
        return ""
    where = "/".join(map(str, error.instance_path))
    return f"At /{where}: the keyword {error.kind.name!r} is not satisfied."


def _parse(text: str, field: str) -> dict[str, Json]:
    if len(text.encode()) > MAX_SOURCE_BYTES:
        raise UnsupportedSchema(
            f"The schema has more than {MAX_SOURCE_BYTES} bytes.", {"field": field}
        )
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnsupportedSchema(f"The schema is not JSON: {error}", {"field": field}) from error
    if not isinstance(schema, dict):
        raise UnsupportedSchema(
            f"The schema is a JSON {type(schema).__name__}; it must be an object.",
            {"field": field},
        )
    return schema


def _keywords(schema: Json, pointer: str, depth: int, field: str) -> Iterator[tuple[str, str]]:
    """Yield (pointer, keyword) for every schema position; data such as `enum` is not entered."""
    if not isinstance(schema, dict):
        return
    if depth > MAX_DEPTH:
        raise UnsupportedSchema(
            f"The schema nests deeper than {MAX_DEPTH} levels.", {"field": field}
        )
    _check_reference(schema, pointer, field)
    for keyword, value in schema.items():
        here = f"{pointer}/{keyword}"
        yield here, keyword
        for name, child in _children(keyword, value):
            yield from _keywords(child, here + name, depth + 1, field)


def _children(keyword: str, value: Json) -> Iterator[tuple[str, Json]]:
    if keyword in _SCHEMAS:
        yield "", value
    elif keyword in _SCHEMA_LISTS and isinstance(value, list):
        yield from ((f"/{index}", child) for index, child in enumerate(value))
    elif keyword in SCHEMA_MAPS and isinstance(value, dict):
        yield from ((f"/{name}", child) for name, child in value.items())


def _check_reference(schema: dict[str, Json], pointer: str, field: str) -> None:
    reference = schema.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise UnsupportedSchema(
            f"The reference {reference!r} at {pointer}/$ref leaves the schema; nothing is fetched, "
            "so put the definition under $defs.",
            {"field": field, "keyword": "$ref", "pointer": f"{pointer}/$ref"},
        )


def _validator(schema: Schema, field: str) -> jsonschema_rs.Draft202012Validator:
    try:
        return jsonschema_rs.Draft202012Validator(
            dict(schema),
            validate_formats=True,
            retriever=_refuse,
            pattern_options=jsonschema_rs.RegexOptions(size_limit=1 << 20),
        )
    except (ValueError, jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
        where = "/".join(map(str, getattr(error, "instance_path", ())))
        reason = str(error).partition("\n")[0]
        raise UnsupportedSchema(
            f"The schema is malformed at /{where}: {reason}.", {"field": field}
        ) from error


def _refuse(reference: str) -> Json:
    raise ValueError(f"{reference} is not fetched")
