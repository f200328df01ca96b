"""The SNIPS workload: one utterance in, one tool call out.

The prompt carries the utterance alone: adapter and student have learnt the tools, so describing
them again would only cost positions, in both arms alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from understudy.errors import InvalidArgument
from understudy.text.chat import Message, opening, turn
from understudy.text.tokenizer import Prompt
from understudy.workloads.snips.grammar import grammar_source
from understudy.workloads.snips.tools import REPEATABLE, SLOTS, tools
from understudy.workloads.workload import ArgumentValue, Json, ToolCall, Verdict

MAX_UTTERANCE_CHARS = 2000


class Snips:
    """Understands music, weather, restaurant, book and film requests."""

    name = "snips"
    output_type = "tool_call"
    adapter = "snips-tools"
    max_answer_tokens = 192

    @property
    def tools(self) -> Sequence[Json]:
        """The seven tools."""
        return tools()

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> Prompt:
        """Render the last user message; earlier turns do not matter to this task."""
        return (*turn(Message("user", utterance_of(messages))), *opening())

    def grammar(self, messages: Sequence[Mapping[str, str]]) -> tuple[str, str]:
        """Return the Lark grammar of calls whose values are spans of the utterance."""
        return "lark", grammar_source(utterance_of(messages))

    def parse(self, text: str) -> ToolCall:
        """Read an answer; a duplicate key, unknown tool or wrong type is refused by name."""
        try:
            payload = json.loads(text, object_pairs_hook=_unique)
        except ValueError as error:
            raise InvalidArgument(f"The answer is not JSON: {error}") from error
        except RecursionError as error:
            raise InvalidArgument("The answer is nested too deeply.") from error
        if not isinstance(payload, dict) or set(payload) != {"name", "arguments"}:
            raise InvalidArgument("The answer is not an object of name and arguments.")
        name, arguments = payload["name"], payload["arguments"]
        if not isinstance(name, str) or name not in SLOTS:
            raise InvalidArgument(f"The answer calls {name!r}, which is not a tool of {self.name}.")
        if not isinstance(arguments, dict):
            raise InvalidArgument(f"The arguments of {name} are not an object.")
        for slot, value in arguments.items():
            _check(name, slot, value)
        return ToolCall(name, arguments)

    def verify(self, messages: Sequence[Mapping[str, str]], answer: str) -> list[Verdict]:
        """Check the schema, then that values are spans of the utterance, then their overlap."""
        try:
            call = self.parse(answer)
        except InvalidArgument as error:
            return [Verdict("schema", False, error.message)]
        values = [value for value in call.arguments.values() for value in _items(value)]
        utterance = utterance_of(messages)
        foreign = sum(value not in utterance for value in values)
        finding = f"{foreign} values are not in the utterance." if foreign else ""
        return [
            Verdict("schema", True),
            Verdict("spans", not foreign, finding),
            _disjoint(utterance, values),
        ]


def utterance_of(messages: Sequence[Mapping[str, str]]) -> str:
    """Return the last user message; raises InvalidArgument where there is no usable one."""
    users = [message.get("content", "") for message in messages if message.get("role") == "user"]
    if not users or not users[-1].strip():
        raise InvalidArgument("The request has no user message.", {"field": "messages"})
    if len(users[-1]) > MAX_UTTERANCE_CHARS:
        raise InvalidArgument(
            f"The utterance has {len(users[-1])} characters; snips takes {MAX_UTTERANCE_CHARS}.",
            {"field": "messages"},
        )
    return users[-1]


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    duplicates = sorted({key for key in keys if keys.count(key) > 1})
    if duplicates:
        raise InvalidArgument(f"The answer repeats the keys {duplicates}.")
    return dict(pairs)


def _check(name: str, slot: str, value: object) -> None:
    if slot not in SLOTS[name]:
        raise InvalidArgument(f"{name} has no argument {slot!r}.")
    if isinstance(value, str) and value.strip():
        return
    is_list = isinstance(value, list) and len(value) > 1 and all(isinstance(v, str) for v in value)
    if not is_list or (name, slot) not in REPEATABLE:
        raise InvalidArgument(f"The argument {slot!r} of {name} has an unusable value.")


def _items(value: ArgumentValue) -> list[str]:
    return value if isinstance(value, list) else [value]


def _disjoint(utterance: str, values: Sequence[str]) -> Verdict:
    """Pass when all values fit into the utterance without overlap (greedy, longest first)."""
    free = utterance
    for value in sorted(values, key=len, reverse=True):
        if value not in free:
            return Verdict("disjoint", False, "Two arguments claim the same words.")
        free = free.replace(value, "\0" * len(value), 1)
    return Verdict("disjoint", True)
