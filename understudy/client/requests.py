"""From the caller's words to a `GenerateRequest`: pure, shared by both clients.

Shapes are checked here only where protobuf could not carry the value; everything else is the
router's to judge, so that a rule lives in one place.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, TypedDict

from understudy.api.router.v1 import router_pb2
from understudy.api.types.v1 import types_pb2
from understudy.client.results import ToolCall
from understudy.errors import InvalidArgument

_ROLES: Final = {
    "system": router_pb2.Message.ROLE_SYSTEM,
    "user": router_pb2.Message.ROLE_USER,
    "assistant": router_pb2.Message.ROLE_ASSISTANT,
    "tool": router_pb2.Message.ROLE_TOOL,
}
_MODES: Final = {
    "auto": router_pb2.ToolChoice.MODE_AUTO,
    "none": router_pb2.ToolChoice.MODE_NONE,
    "required": router_pb2.ToolChoice.MODE_REQUIRED,
}
_PRIORITIES: Final = {
    "interactive": types_pb2.PRIORITY_INTERACTIVE,
    "standard": types_pb2.PRIORITY_STANDARD,
    "batch": types_pb2.PRIORITY_BATCH,
}
_UINT32_MAX: Final = 2**32 - 1
_UINT64_MAX: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is system, user, assistant or tool."""

    role: str
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call; `parameters` is the JSON Schema of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, object]


MessageLike: TypeAlias = Message | Mapping[str, object]
ToolLike: TypeAlias = Tool | Mapping[str, object]


class GenerateParams(TypedDict, total=False):
    """What `generate` and `complete` accept, by keyword.

    messages         the conversation: `Message`s or OpenAI-style mappings; or give `prompt`
    prompt           raw text to continue, without a chat template
    model            "auto" (default), or a name from `models()` such as "slm" or "llm"
    tools            functions the model may call: `Tool`s or OpenAI-style mappings
    tool_choice      "auto", "none", "required" or the name of one tool
    schema           JSON Schema the text must satisfy, as a mapping or as JSON text
    max_tokens       cap of generated tokens; the router's default is 256
    temperature      0 (default) is greedy
    top_p, top_k     keep the likeliest tokens by mass or by number
    seed             same seed, same answer
    stop             end before any of these texts
    workload         workload name; left out, the router recognises it by its tools
    priority         "interactive", "standard" (default) or "batch" (offline, fills the gaps)
    timeout_s        time for the whole answer, retries and resumes included
    idempotency_key  makes a repeated request return the same answer; generated when left out
    """

    messages: Sequence[MessageLike]
    prompt: str
    model: str
    tools: Sequence[ToolLike]
    tool_choice: str
    schema: Mapping[str, object] | str
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: Sequence[str]
    workload: str
    priority: str
    timeout_s: float
    idempotency_key: str


def build_request(params: GenerateParams, idempotency_key: str) -> router_pb2.GenerateRequest:
    """Build the request; `idempotency_key` is used where the params bring none.

    Raises InvalidArgument naming the field that cannot be sent.
    """
    schema = params.get("schema", "")
    return router_pb2.GenerateRequest(
        model=params.get("model", ""),
        messages=[_message(message, i) for i, message in enumerate(params.get("messages", ()))],
        prompt=params.get("prompt", ""),
        tools=[_tool(tool, i) for i, tool in enumerate(params.get("tools", ()))],
        tool_choice=_tool_choice(params["tool_choice"]) if "tool_choice" in params else None,
        response_schema_json=schema if isinstance(schema, str) else _dump(schema, "schema"),
        sampling=_sampling(params),
        workload=params.get("workload", ""),
        idempotency_key=params.get("idempotency_key") or idempotency_key,
        priority=_priority(params["priority"])
        if "priority" in params
        else types_pb2.PRIORITY_UNSPECIFIED,
    )


def _message(message: MessageLike, index: int) -> router_pb2.Message:
    field = f"messages[{index}]"
    if not isinstance(message, Message):
        message = _message_from_mapping(message, field)
    if message.role not in _ROLES:
        raise _invalid(f"{field}.role", f"is {message.role!r}; use one of {', '.join(_ROLES)}")
    return router_pb2.Message(
        role=_ROLES[message.role],
        content=message.content,
        tool_calls=[
            router_pb2.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments_json)
            for call in message.tool_calls
        ],
        tool_call_id=message.tool_call_id,
    )


def _message_from_mapping(message: Mapping[str, object], field: str) -> Message:
    content = message.get("content")
    return Message(
        role=_text(message.get("role"), f"{field}.role"),
        content="" if content is None else _text(content, f"{field}.content"),
        tool_calls=tuple(_tool_calls(message.get("tool_calls"), f"{field}.tool_calls")),
        tool_call_id=_text(message.get("tool_call_id") or "", f"{field}.tool_call_id"),
    )


def _tool_calls(calls: object, field: str) -> Iterable[ToolCall]:
    if calls is None:
        return
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise _invalid(field, "is no list of tool calls")
    for index, call in enumerate(calls):
        if isinstance(call, ToolCall):
            yield call
            continue
        item = f"{field}[{index}]"
        function = _mapping(_mapping(call, item).get("function"), f"{item}.function")
        yield ToolCall(
            id=_text(call.get("id") or "", f"{item}.id"),
            name=_text(function.get("name"), f"{item}.function.name"),
            arguments_json=_text(function.get("arguments"), f"{item}.function.arguments"),
        )


def _tool(tool: ToolLike, index: int) -> router_pb2.Tool:
    field = f"tools[{index}]"
    if not isinstance(tool, Tool):
        function = _mapping(tool.get("function", tool), field)
        tool = Tool(
            name=_text(function.get("name"), f"{field}.name"),
            description=_text(function.get("description") or "", f"{field}.description"),
            parameters=_mapping(function.get("parameters", {}), f"{field}.parameters"),
        )
    return router_pb2.Tool(
        name=tool.name,
        description=tool.description,
        parameters_json=_dump(tool.parameters, f"{field}.parameters"),
    )


def _tool_choice(choice: str) -> router_pb2.ToolChoice:
    if choice in _MODES:
        return router_pb2.ToolChoice(mode=_MODES[choice])
    return router_pb2.ToolChoice(mode=router_pb2.ToolChoice.MODE_NAMED, name=choice)


def _priority(name: str) -> types_pb2.Priority.ValueType:
    if name not in _PRIORITIES:
        raise _invalid("priority", f"is {name!r}; use one of {', '.join(_PRIORITIES)}")
    return _PRIORITIES[name]


def _sampling(params: GenerateParams) -> types_pb2.SamplingParams:
    stop = params.get("stop", ())
    texts = (stop,) if isinstance(stop, str) else stop
    return types_pb2.SamplingParams(
        max_tokens=_count(params.get("max_tokens"), "max_tokens", _UINT32_MAX),
        temperature=_number(params.get("temperature"), "temperature"),
        top_p=_number(params.get("top_p"), "top_p"),
        top_k=_count(params.get("top_k"), "top_k", _UINT32_MAX),
        seed=_count(params.get("seed"), "seed", _UINT64_MAX),
        stop=[_text(text, f"stop[{index}]") for index, text in enumerate(texts)],
    )


def _count(value: object, field: str, largest: int) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise _invalid(field, f"is {type(value).__name__}, not a whole number")
    if not 0 <= value <= largest:
        raise _invalid(field, f"is {value}; it must lie between 0 and {largest}")
    return value


def _number(value: object, field: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _invalid(field, f"is {type(value).__name__}, not a number")
    return float(value)


def _dump(value: Mapping[str, object], field: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _invalid(field, f"cannot be written as JSON: {error}") from error


def _mapping(value: object, field: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise _invalid(field, f"is {type(value).__name__}, not a mapping")
    return value


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise _invalid(field, f"is {type(value).__name__}, not text")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise _invalid(field, "holds half of a surrogate pair, which is no Unicode text")
    return value


def _invalid(field: str, problem: str) -> InvalidArgument:
    return InvalidArgument(f"The field `{field}` {problem}.", {"field": field})
