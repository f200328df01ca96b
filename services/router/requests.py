"""A caller's request as plain data, and what makes one acceptable.

Both edges build a `Request`; `check_request` refuses it with the field named; the journal keeps it
as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import Any, Final, Literal

from understudy.errors import InvalidArgument
from understudy.grammar import check_schema
from understudy.grammar.schema import Json

Role = Literal["system", "user", "assistant", "tool"]
Priority = Literal["interactive", "standard", "batch"]
ToolMode = Literal["auto", "none", "required", "named"]

MAX_MESSAGES: Final = 2048
MAX_TOOL_CALLS: Final = 2048
"""Calls over all messages."""
MAX_TOOLS: Final = 64
MAX_STOPS: Final = 8
MAX_STOP_BYTES: Final = 128
MAX_KEY_BYTES: Final = 128
MAX_TEMPERATURE: Final = 4.0
MAX_TOP_K: Final = 2**32 - 1
DEFAULT_MAX_TOKENS: Final = 256
_TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model made."""

    id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call."""

    name: str
    description: str
    parameters: dict[str, Json]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Limits of decoding; `max_tokens` None leaves it to the workload, else 256."""

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller asks for; messages or prompt, tools or schema."""

    model: str = "auto"
    messages: tuple[Message, ...] = ()
    prompt: str = ""
    tools: tuple[Tool, ...] = ()
    tool_mode: ToolMode = "auto"
    tool_name: str = ""
    schema_json: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    workload: str = ""
    idempotency_key: str = ""
    priority: Priority = "standard"

    @property
    def operation(self) -> str:
        """What is asked for, as OpenTelemetry's GenAI conventions call it."""
        return "chat" if self.messages else "text_completion"

    def digest(self) -> str:
        """Return the identity of what is asked, the idempotency key apart."""
        return sha256(replace(self, idempotency_key="").to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the request as JSON text."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))


def request_from_json(text: str) -> Request:
    """Rebuild a request that `Request.to_json` wrote."""
    body: dict[str, Any] = json.loads(text)
    sampling = body.pop("sampling")
    messages = tuple(
        Message(**{**message, "tool_calls": tuple(ToolCall(**c) for c in message["tool_calls"])})
        for message in body.pop("messages")
    )
    tools = tuple(Tool(**tool) for tool in body.pop("tools"))
    sampling["stop"] = tuple(sampling["stop"])
    return Request(messages=messages, tools=tools, sampling=Sampling(**sampling), **body)


def check_request(request: Request, max_prompt_bytes: int) -> None:
    """Refuse what no pool could serve; raises InvalidArgument naming the field.

    `max_prompt_bytes` bounds all texts together: whatever is tokenised or journalled counts.
    """
    check_counts(
        len(request.messages),
        sum(len(message.tool_calls) for message in request.messages),
        len(request.tools),
    )
    _check_texts(request, max_prompt_bytes)
    _check_prompt(request)
    _check_tools(request)
    _check_sampling(request.sampling)
    if request.schema_json:
        if request.tools:
            raise _invalid("response_schema_json", "excludes tools; give one of the two")
        check_schema(request.schema_json)
    if len(request.idempotency_key.encode()) > MAX_KEY_BYTES:
        raise _invalid("idempotency_key", f"has more than {MAX_KEY_BYTES} bytes")


def check_counts(num_messages: int, num_tool_calls: int, num_tools: int) -> None:
    """Refuse lists that are too long; the edges ask before they build what is in them."""
    if num_messages > MAX_MESSAGES:
        raise _invalid("messages", f"has {num_messages} messages; at most {MAX_MESSAGES} are taken")
    if num_tool_calls > MAX_TOOL_CALLS:
        raise _invalid(
            "messages", f"have {num_tool_calls} tool calls; at most {MAX_TOOL_CALLS} are taken"
        )
    if num_tools > MAX_TOOLS:
        raise _invalid("tools", f"has {num_tools} tools; at most {MAX_TOOLS} are taken")


def parse_parameters(text: str, index: int) -> dict[str, Json]:
    """Read the JSON Schema of a tool's arguments; empty text means no arguments."""
    return check_schema(text, f"tools[{index}].parameters_json") if text.strip() else {}


def openai_tools(tools: tuple[Tool, ...]) -> list[Mapping[str, object]]:
    """Return the tools in OpenAI's format, by which tool sets are known."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
            },
        }
        for tool in tools
    ]


def _check_texts(request: Request, max_bytes: int) -> None:
    sizes = {field: _num_bytes(field, texts) for field, texts in _texts(request).items()}
    size_bytes = sum(sizes.values())
    if size_bytes > max_bytes:
        raise _invalid(
            max(sizes, key=lambda field: sizes[field]),
            f"is the largest part of {size_bytes} bytes of text; at most {max_bytes} are taken",
        )


def _texts(request: Request) -> dict[str, list[str]]:
    """Every text a caller sent, by field."""
    turns = [text for message in request.messages for text in _turn_texts(message)]
    tools = [
        text
        for tool in request.tools
        for text in (tool.name, tool.description, json.dumps(tool.parameters, ensure_ascii=False))
    ]
    return {
        "messages": turns,
        "prompt": [request.prompt],
        "tools": tools,
        "tool_choice.name": [request.tool_name],
        "response_schema_json": [request.schema_json],
        "sampling.stop": list(request.sampling.stop),
        "model": [request.model],
        "workload": [request.workload],
        "idempotency_key": [request.idempotency_key],
    }


def _turn_texts(message: Message) -> list[str]:
    calls = [
        text for call in message.tool_calls for text in (call.id, call.name, call.arguments_json)
    ]
    return [message.content, message.tool_call_id, *calls]


def _num_bytes(field: str, texts: list[str]) -> int:
    try:
        return sum(len(text.encode()) for text in texts)
    except UnicodeEncodeError as error:
        raise _invalid(field, "holds half of a surrogate pair, which is no text") from error


def _check_prompt(request: Request) -> None:
    if bool(request.messages) == bool(request.prompt):
        problem = "are both given; send one" if request.prompt else "are both empty; send one"
        raise _invalid("messages", f"and prompt {problem}")
    if request.messages and not request.messages[-1].content.strip():
        raise _invalid(f"messages[{len(request.messages) - 1}].content", "is empty")
    if not request.messages and not request.prompt.strip():
        raise _invalid("prompt", "is empty")


def _check_tools(request: Request) -> None:
    names = [tool.name for tool in request.tools]
    for index, name in enumerate(names):
        if not _TOOL_NAME.fullmatch(name):
            raise _invalid(f"tools[{index}].name", "must match [A-Za-z0-9_-]{1,64}")
        if name in names[:index]:
            raise _invalid(f"tools[{index}].name", f"repeats {name!r}")
    if request.tool_mode in ("required", "named") and not names:
        raise _invalid("tool_choice", "asks for a call, but there are no tools")
    if request.tool_mode == "named" and request.tool_name not in names:
        raise _invalid(
            "tool_choice.name", f"is {request.tool_name!r}, which is not among the tools"
        )


def _check_sampling(sampling: Sampling) -> None:
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        raise _invalid("sampling.max_tokens", f"is {sampling.max_tokens}; it must be at least 1")
    if not 0.0 <= sampling.temperature <= MAX_TEMPERATURE:
        raise _invalid("sampling.temperature", f"must lie in [0, {MAX_TEMPERATURE:g}]")
    if not 0.0 < sampling.top_p <= 1.0:
        raise _invalid("sampling.top_p", "must lie in (0, 1]")
    if not 0 <= sampling.top_k <= MAX_TOP_K:
        raise _invalid("sampling.top_k", f"must lie in [0, {MAX_TOP_K}]")
    if not 0 <= sampling.seed < 2**64:
        raise _invalid("sampling.seed", "must fit 64 bits without a sign")
    is_bad_stop = any(not 0 < len(stop.encode()) <= MAX_STOP_BYTES for stop in sampling.stop)
    if len(sampling.stop) > MAX_STOPS or is_bad_stop:
        raise _invalid(
            "sampling.stop", f"takes at most {MAX_STOPS} texts of 1 to {MAX_STOP_BYTES} bytes"
        )


def _invalid(name: str, problem: str) -> InvalidArgument:
    return InvalidArgument(f"The field `{name}` {problem}.", {"field": name})
