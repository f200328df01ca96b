"""OpenAI request bodies -> `Request`: strict on what is read, blind to what is not known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, TypeVar

from services.router.requests import (
    Message,
    Priority,
    Request,
    Role,
    Sampling,
    Tool,
    ToolCall,
    ToolMode,
    check_counts,
    parse_parameters,
)
from understudy.errors import InvalidArgument

Body = Mapping[str, object]
T = TypeVar("T")

_ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_MODES: Final[Mapping[str, ToolMode]] = {"auto": "auto", "none": "none", "required": "required"}
_TIERS: Final[Mapping[str, Priority]] = {
    "auto": "standard",
    "default": "standard",
    "flex": "batch",
    "priority": "interactive",
}
_JSON_NAMES: Final[Mapping[type, str]] = {
    bool: "boolean",
    dict: "object",
    int: "integer",
    list: "array",
    str: "string",
}
ANY_JSON_OBJECT: Final = '{"type":"object"}'


def parse_body(data: bytes) -> Body:
    """Read a JSON object; raises InvalidArgument."""
    try:
        body = json.loads(data, parse_constant=_refuse_constant)
        # Half a surrogate pair parses, in raw bytes and as an escape, and breaks whoever encodes
        # it later: one encoding here finds it in any text or key.
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            "The body holds half of a surrogate pair, which is no text.", {"field": "body"}
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"The body is not JSON: {error}", {"field": "body"}) from error
    if not isinstance(body, dict):
        raise InvalidArgument("The body is not a JSON object.", {"field": "body"})
    return body


def chat_request(body: Body, idempotency_key: str) -> Request:
    """Return the request of a chat completion."""
    messages = _get(body, "messages", list) or []
    tools = _get(body, "tools", list) or []
    check_counts(len(messages), 0, len(tools))
    mode, name = _tool_choice(body)
    return Request(
        model=_model(body),
        messages=tuple(_message(item, index) for index, item in enumerate(messages)),
        tools=tuple(_tool(item, index) for index, item in enumerate(tools)),
        tool_mode=mode,
        tool_name=name,
        schema_json=_schema_json(body),
        sampling=_sampling(body),
        workload=(_get(body, "workload", str) or ""),
        idempotency_key=idempotency_key,
        priority=_priority(body),
    )


def completion_request(body: Body, idempotency_key: str) -> Request:
    """Return the request of a plain completion."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise _wrong("prompt", "must be one text")
    return Request(
        model=_model(body),
        prompt=prompt,
        sampling=_sampling(body),
        idempotency_key=idempotency_key,
        priority=_priority(body),
    )


def is_streamed(body: Body) -> bool:
    """Return whether the answer is to be streamed."""
    return _get(body, "stream", bool) or False


def wants_usage(body: Body) -> bool:
    """Return whether a stream is to end with a usage chunk."""
    return _get(_get(body, "stream_options", dict) or {}, "include_usage", bool) or False


def _model(body: Body) -> str:
    _reject_many(body)
    return _get(body, "model", str) or ""


def _reject_many(body: Body) -> None:
    for name in ("n", "best_of"):
        if _get(body, name, int) not in (None, 1):
            raise _wrong(name, "must be 1; send the request several times")


def _priority(body: Body) -> Priority:
    tier = _get(body, "service_tier", str) or "auto"
    if tier not in _TIERS:
        raise _wrong("service_tier", f"is {tier!r}; use {', '.join(_TIERS)}")
    return _TIERS[tier]


def _sampling(body: Body) -> Sampling:
    limit = _get(body, "max_completion_tokens", int)
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(item, str) for item in stops):
        raise _wrong("stop", "must be a text or a list of texts")
    return Sampling(
        max_tokens=_get(body, "max_tokens", int) if limit is None else limit,
        temperature=_number(body, "temperature", 0.0),
        top_p=_number(body, "top_p", 1.0),
        top_k=max((_get(body, "top_k", int) or 0), 0),
        seed=(_get(body, "seed", int) or 0) % 2**64,
        stop=tuple(stops),
        ignore_eos=(_get(body, "ignore_eos", bool) or False),
    )


def _schema_json(body: Body) -> str:
    wanted = _get(body, "response_format", dict) or {}
    match wanted.get("type", "text"):
        case "text":
            return ""
        case "json_object":
            return ANY_JSON_OBJECT
        case "json_schema":
            described = _get(wanted, "json_schema", dict, "response_format.json_schema") or {}
            schema = described.get("schema")
            if not isinstance(schema, dict):
                raise _wrong("response_format.json_schema.schema", "must be an object")
            return json.dumps(schema)
        case kind:
            raise _wrong("response_format.type", f"is {kind!r}; use text, json_object, json_schema")


def _tool_choice(body: Body) -> tuple[ToolMode, str]:
    choice = body.get("tool_choice")
    if choice is None:
        return "auto", ""
    if isinstance(choice, str) and choice in _MODES:
        return _MODES[choice], ""
    if isinstance(choice, dict):
        function = _get(choice, "function", dict, "tool_choice.function") or {}
        return "named", (_get(function, "name", str, "tool_choice.function.name") or "")
    raise _wrong("tool_choice", "must be auto, none, required or a function")


def _message(item: object, index: int) -> Message:
    field = f"messages[{index}]"
    if not isinstance(item, dict):
        raise _wrong(field, "must be an object")
    role = item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise _wrong(f"{field}.role", f"must be one of {', '.join(_ROLES)}")
    calls = _get(item, "tool_calls", list, f"{field}.tool_calls") or []
    return Message(
        role=_ROLES[role],
        content=_content(item.get("content"), f"{field}.content"),
        tool_calls=tuple(
            _tool_call(call, f"{field}.tool_calls[{n}]") for n, call in enumerate(calls)
        ),
        tool_call_id=(_get(item, "tool_call_id", str, f"{field}.tool_call_id") or ""),
    )


def _content(content: object, field: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _wrong(field, "must be text or a list of text parts")
    return "".join(_part(part, f"{field}[{index}]") for index, part in enumerate(content))


def _part(part: object, field: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        raise _wrong(field, "must be a part of type text")
    return _get(part, "text", str, f"{field}.text") or ""


def _tool_call(call: object, field: str) -> ToolCall:
    if not isinstance(call, dict):
        raise _wrong(field, "must be an object")
    function = _get(call, "function", dict, f"{field}.function") or {}
    return ToolCall(
        id=(_get(call, "id", str, f"{field}.id") or ""),
        name=(_get(function, "name", str, f"{field}.function.name") or ""),
        arguments_json=(_get(function, "arguments", str, f"{field}.function.arguments") or ""),
    )


def _tool(item: object, index: int) -> Tool:
    field = f"tools[{index}]"
    if not isinstance(item, dict) or item.get("type", "function") != "function":
        raise _wrong(field, "must be an object of type function")
    function = _get(item, "function", dict, f"{field}.function") or {}
    parameters = _get(function, "parameters", dict, f"{field}.function.parameters") or {}
    return Tool(
        name=(_get(function, "name", str, f"{field}.function.name") or ""),
        description=(_get(function, "description", str, f"{field}.function.description") or ""),
        parameters=parse_parameters(json.dumps(parameters), index),
    )


def _number(body: Body, name: str, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, "must be a number")
    try:
        return float(value)
    except OverflowError as error:
        raise _wrong(name, "is too large for a number") from error


def _get(body: Body, name: str, kind: type[T], field: str = "") -> T | None:
    """Return a value of this JSON type; None where it is null or absent."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _wrong(field or name, f"must be of type {_JSON_NAMES[kind]}")
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


def _wrong(field: str, problem: str) -> InvalidArgument:
    return InvalidArgument(f"The field `{field}` {problem}.", {"field": field})
