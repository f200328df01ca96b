"""A request -> the OpenAI form that an engine is asked in; pure.

The meaning is that of a native pool: where the plan holds a tool call the engine must make one,
after a tool's result it answers in words, and a plain prompt stays a plain completion.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from services.router.answers import Gap
from services.router.external.port import Path, Question
from services.router.plans import Plan
from services.router.requests import Message, Request, Sampling, openai_tools

Body = dict[str, object]

NUM_CANDIDATES = 2
"""Candidates asked for at each token: the margin is between the best two."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How the engines of one pool are asked."""

    model: str
    """Name under which they serve it."""
    wants_logprobs: bool

    def question(self, request: Request, plan: Plan, traceparent: str) -> Question:
        """Return what an engine is asked for a request."""
        is_plain = bool(request.prompt) and plan.output_type == "text"
        path: Path = "completions" if is_plain else "chat/completions"
        body: Body = {
            "model": self.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": plan.max_tokens,
            **_sampling(request.sampling),
        }
        if is_plain:
            body["prompt"] = request.prompt
        else:
            body["messages"] = _messages(request)
            body |= _format(request, plan)
        if self.wants_logprobs:
            body |= (
                {"logprobs": NUM_CANDIDATES}
                if is_plain
                else {"logprobs": True, "top_logprobs": NUM_CANDIDATES}
            )
        return Question(path, body, traceparent)


def gaps(request: Request, plan: Plan, adapter: str) -> frozenset[Gap]:
    """Return what no OpenAI-compatible engine gives to this request, whichever it is."""
    grammar = plan.grammar
    found: dict[Gap, bool] = {
        "grammar": grammar is not None and grammar.kind == "lark",
        "forced_tokens": grammar is not None,
        "adapter": bool(adapter),
        "seed": request.sampling.temperature > 0.0,
        "priority": request.priority != "standard",
    }
    return frozenset(gap for gap, is_open in found.items() if is_open)


def _sampling(sampling: Sampling) -> Body:
    """Only what differs from the defaults: strict engines refuse extensions they do not know."""
    body: Body = {"temperature": sampling.temperature}
    if sampling.temperature > 0.0:
        body["seed"] = sampling.seed % 2**63  # OpenAI's seeds are signed
    if sampling.top_p < 1.0:
        body["top_p"] = sampling.top_p
    if sampling.top_k:
        body["top_k"] = sampling.top_k
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.ignore_eos:
        body["ignore_eos"] = True
    return body


def _messages(request: Request) -> list[Body]:
    if request.prompt:
        return [{"role": "user", "content": request.prompt}]
    return [_message(message) for message in request.messages]


def _message(message: Message) -> Body:
    body: Body = {"role": message.role, "content": message.content}
    if message.tool_calls:
        body["content"] = message.content or None
        body["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments_json},
            }
            for call in message.tool_calls
        ]
    if message.role == "tool":
        body["tool_call_id"] = message.tool_call_id
    return body


def _format(request: Request, plan: Plan) -> Body:
    """Tools, or the schema of the answer, as the plan takes them."""
    if plan.output_type == "tool_call":
        return {
            "tools": _tools(request, plan),
            "tool_choice": _choice(request),
            "parallel_tool_calls": False,
        }
    body: Body = {}
    if request.tools:
        body = {"tools": openai_tools(request.tools), "tool_choice": "none"}
    if plan.schema is not None:
        described = {"name": "answer", "schema": plan.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": described}
    return body


def _tools(request: Request, plan: Plan) -> list[Mapping[str, object]]:
    if request.tools or plan.workload is None:
        return openai_tools(request.tools)
    return list(plan.workload.tools)


def _choice(request: Request) -> str | Body:
    if request.tool_mode == "named":
        return {"type": "function", "function": {"name": request.tool_name}}
    return "required"


def call_text(name: str, arguments: str) -> str:
    """Return a tool call as verifiers read it: the same JSON that a native pool writes."""
    try:
        json.loads(arguments)
    except (ValueError, RecursionError):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return f'{{"name":{json.dumps(name, ensure_ascii=False)},"arguments":{arguments}}}'
