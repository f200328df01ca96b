"""What a workload is, and the answer type that tool-calling workloads share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from understudy.text.tokenizer import Prompt

ArgumentValue = str | list[str]
Arguments = Mapping[str, ArgumentValue]
Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of one tool, as parsed from an answer."""

    name: str
    arguments: Arguments

    def to_json(self) -> str:
        """Return the compact JSON form, which is the answer format of tool-calling workloads."""
        payload = {"name": self.name, "arguments": dict(self.arguments)}
        return json.dumps(payload, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one verifier; `detail` names the finding and never quotes the prompt."""

    verifier: str
    passed: bool
    detail: str = ""


class Workload(Protocol):
    """A task the platform knows: how to ask it, constrain it, read it and check it."""

    @property
    def name(self) -> str:
        """The name requests and calibrators use."""

    @property
    def output_type(self) -> str:
        """What calibrators are kept apart by, next to the workload: `tool_call`, `json`, `text`."""

    @property
    def adapter(self) -> str:
        """Name of the LLM adapter that answers this workload; empty for none."""

    @property
    def tools(self) -> Sequence[Json]:
        """The exact tool set, in OpenAI's format."""

    @property
    def max_answer_tokens(self) -> int:
        """A bound no proper answer reaches."""

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> Prompt:
        """Render the prompt that both arms receive; raises InvalidArgument where it cannot."""

    def grammar(self, messages: Sequence[Mapping[str, str]]) -> tuple[str, str]:
        """Return (kind, source) of the grammar of all proper answers to these messages."""

    def parse(self, text: str) -> ToolCall:
        """Read an answer; raises InvalidArgument where it is not one."""

    def verify(self, messages: Sequence[Mapping[str, str]], answer: str) -> list[Verdict]:
        """Run this workload's verifiers over an answer, cheapest first."""


def tool_set_hash(tools: Sequence[Json]) -> str:
    """Return the identity of an exact tool set; the order of tools and keys does not matter."""
    canonical = sorted(
        json.dumps(tool, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        for tool in tools
    )
    return hashlib.sha256("\n".join(canonical).encode()).hexdigest()
