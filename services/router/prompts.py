"""The prompt of a request that belongs to no workload: a chat, with tools described where given."""

from __future__ import annotations

import json

from services.router.requests import Message, Request, Tool
from understudy.text import chat
from understudy.text.tokenizer import Prompt, Segment


def generic_prompt(request: Request, tools: tuple[Tool, ...]) -> Prompt:
    """Render raw text as it is, and a conversation by the chat template with these tools."""
    if request.prompt:
        return (Segment(request.prompt),)
    turns = [chat.Message(message.role, _content(message)) for message in request.messages]
    if tools:
        turns = _with_tools(turns, tools)
    return chat.render(turns)


def _content(message: Message) -> str:
    calls = [
        json.dumps({"name": call.name, "arguments": _arguments(call.arguments_json)})
        for call in message.tool_calls
    ]
    return "\n".join(part for part in (message.content, *calls) if part)


def _arguments(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _with_tools(turns: list[chat.Message], tools: tuple[Tool, ...]) -> list[chat.Message]:
    described = "\n".join(
        json.dumps(
            {"name": t.name, "description": t.description, "parameters": t.parameters},
            ensure_ascii=False,
        )
        for t in tools
    )
    instruction = (
        "You can call these functions:\n"
        f"{described}\n"
        'Answer with one call as JSON: {"name": <function>, "arguments": {<argument>: <value>}}.'
    )
    if turns[0].role == "system":
        return [chat.Message("system", f"{turns[0].content}\n\n{instruction}"), *turns[1:]]
    return [chat.Message("system", instruction), *turns]
