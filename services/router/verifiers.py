"""Checks of a finished answer, from cheap to dear, independent of the grammar that shaped it."""

from __future__ import annotations

import json
import secrets

from services.router.plans import Plan, turns
from services.router.requests import Request, ToolCall
from understudy.grammar import validate
from understudy.workloads import Verdict


def verify(plan: Plan, request: Request, text: str) -> tuple[Verdict, ...]:
    """Return the verdicts on an answer: JSON Schema first, then what the workload checks."""
    verdicts: list[Verdict] = []
    if plan.schema is not None:
        verdicts.append(_schema_verdict(plan, text))
    if plan.workload is not None and all(verdict.passed for verdict in verdicts):
        verdicts.extend(plan.workload.verify(turns(request), text))
    return tuple(verdicts)


def tool_calls(text: str) -> tuple[ToolCall, ...]:
    """Read tool calls; none where the text is not a complete one.

    One is what is asked for; an external engine may make several, which no verifier passes.
    """
    try:
        body = json.loads(text)
        calls = body if isinstance(body, list) else [body]
        return tuple(_tool_call(call["name"], call["arguments"]) for call in calls)
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()


def _tool_call(name: object, arguments: object) -> ToolCall:
    text = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair can only be sent as an escape
        text = json.dumps(arguments, separators=(",", ":"))
    return ToolCall(id=f"call_{secrets.token_hex(12)}", name=str(name), arguments_json=text)


def _schema_verdict(plan: Plan, text: str) -> Verdict:
    assert plan.schema is not None
    try:
        instance = json.loads(text)
        problem = validate(plan.schema, instance)
    except ValueError:
        return Verdict("json_schema", False, "The answer is not complete JSON.")
    except RecursionError:
        return Verdict("json_schema", False, "The answer is nested too deeply.")
    return Verdict("json_schema", not problem, problem)
