"""From a request to what both arms are given: workload, tokens, grammar, adapter, verifiers.

Tokenising and compiling take milliseconds: call `Planner.plan` off the event loop.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, cast

from services.router.prompts import generic_prompt
from services.router.requests import DEFAULT_MAX_TOKENS, Request, Tool, openai_tools
from understudy.errors import InvalidArgument, UnsupportedSchema
from understudy.grammar import Compiler, GrammarSource, check_schema, tools_schema
from understudy.grammar.schema import Json
from understudy.grammar.source import GrammarKind
from understudy.text.tokenizer import Prompt, Tokenizer
from understudy.workloads import Workload, find_workload, workload_by_tools

OutputType = Literal["text", "json", "tool_call"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one request asks of a model; the same prompt and grammar for both arms."""

    output_type: OutputType
    workload: Workload | None
    tokens: tuple[int, ...]
    grammar: GrammarSource | None
    schema: dict[str, Json] | None
    """What the finished answer must satisfy, checked independently of the grammar."""
    adapter: str
    """Adapter of the LLM; the SLM brings its own weights."""
    max_tokens: int

    @property
    def is_held(self) -> bool:
        """Whether the answer is committed as a whole, once it is complete and verified."""
        return self.output_type == "tool_call"

    @property
    def workload_name(self) -> str:
        """Name of the workload; empty for none."""
        return self.workload.name if self.workload else ""


class Planner:
    """Makes plans with one tokenizer; safe between threads.

    Without one (every pool is external) plans have no tokens, and engines refuse the schemas that
    they cannot compile.
    """

    def __init__(self, tokenizer: Tokenizer | None, compiler: Compiler | None) -> None:
        self._tokenizer = tokenizer
        self._compiler = compiler

    def plan(self, request: Request) -> Plan:
        """Return the plan of a checked request.

        Raises InvalidArgument, UnsupportedSchema, or NotFound for an unknown workload.
        """
        tools = _callable_tools(request)
        workload = _workload(request, tools)
        if workload is not None:
            return self._workload_plan(request, workload)
        schema = _schema(request, tools)
        grammar = GrammarSource("json_schema", json.dumps(schema)) if schema is not None else None
        if grammar is not None:
            self._compile(grammar, "tools" if tools else "response_schema_json")
        return Plan(
            output_type="tool_call" if tools else "json" if schema is not None else "text",
            workload=None,
            tokens=self._tokens(generic_prompt(request, tools)),
            grammar=grammar,
            schema=schema,
            adapter="",
            max_tokens=request.sampling.max_tokens or DEFAULT_MAX_TOKENS,
        )

    def _workload_plan(self, request: Request, workload: Workload) -> Plan:
        messages = turns(request)
        kind, source = workload.grammar(messages)
        grammar = GrammarSource(cast("GrammarKind", kind), source)
        self._compile(grammar, "messages")
        return Plan(
            output_type=cast("OutputType", workload.output_type),
            workload=workload,
            tokens=self._tokens(workload.prompt(messages)),
            grammar=grammar,
            schema=_workload_schema(workload),
            adapter=workload.adapter,
            max_tokens=request.sampling.max_tokens or workload.max_answer_tokens,
        )

    def _tokens(self, prompt: Prompt) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode_prompt(prompt)) if self._tokenizer else ()

    def _compile(self, grammar: GrammarSource, field: str) -> None:
        """Compile before a worker does, so that a refusal names the caller's field."""
        if self._compiler is None:
            return
        try:
            self._compiler.compile(grammar)
        except UnsupportedSchema as error:
            raise UnsupportedSchema(error.message, {**error.metadata, "field": field}) from error
        except ValueError as error:  # what JSON Schema allows and the engine cannot read: 1e999
            raise UnsupportedSchema(
                f"The schema cannot be compiled: {error}.", {"field": field}
            ) from error


def turns(request: Request) -> list[dict[str, str]]:
    """Return the conversation as workloads read it."""
    if request.prompt:
        return [{"role": "user", "content": request.prompt}]
    return [{"role": message.role, "content": message.content} for message in request.messages]


def _callable_tools(request: Request) -> tuple[Tool, ...]:
    """The tools the answer must call one of; none for plain text.

    Under "auto" the platform calls a tool, except right after a tool's result, which is to be put
    into words.
    """
    is_after_result = bool(request.messages) and request.messages[-1].role == "tool"
    if request.tool_mode == "none" or (request.tool_mode == "auto" and is_after_result):
        return ()
    return request.tools


def _workload(request: Request, tools: tuple[Tool, ...]) -> Workload | None:
    if request.workload:
        found = find_workload(request.workload)
        if request.schema_json:
            raise InvalidArgument(
                f"The workload {found.name!r} has its own answers; leave the schema out.",
                {"field": "response_schema_json"},
            )
        return found
    # A named choice narrows the grammar, which no calibrator and no adapter was made for.
    if not tools or request.tool_mode == "named" or request.sampling.stop:
        return None
    return workload_by_tools(openai_tools(tools))


def _schema(request: Request, tools: tuple[Tool, ...]) -> dict[str, Json] | None:
    if tools:
        return tools_schema(tools, request.tool_name if request.tool_mode == "named" else None)
    return check_schema(request.schema_json) if request.schema_json else None


def _workload_schema(workload: Workload) -> dict[str, Json] | None:
    if workload.output_type != "tool_call":
        return None
    functions = [cast("dict[str, Json]", tool["function"]) for tool in workload.tools]
    return tools_schema(
        [
            Tool(str(f["name"]), str(f["description"]), cast("dict[str, Json]", f["parameters"]))
            for f in functions
        ]
    )
