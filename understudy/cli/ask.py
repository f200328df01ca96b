"""One question, or a conversation, with the answer as it comes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape

from understudy.cli.tables import decision_line
from understudy.client import AnswerStream, Client, Delta, Finished, GenerateParams
from understudy.errors import InvalidArgument, UnderstudyError
from understudy.workloads import find_workload, workload_names

MAX_FILE_BYTES: Final = 256 * 1024


def tools_option(text: str) -> GenerateParams:
    """Return the params for `--tools`: a workload's name, or a file with OpenAI-style tools."""
    if text in workload_names():
        return {"tools": find_workload(text).tools, "workload": text}
    tools = _read_json(text, "--tools")
    if not isinstance(tools, list):
        raise InvalidArgument(f"{text} holds no list of tools.", {"field": "tools"})
    return {"tools": tools}


def schema_option(text: str) -> GenerateParams:
    """Return the params for `--schema`: a file with a JSON Schema."""
    schema = _read_json(text, "--schema")
    if not isinstance(schema, dict):
        raise InvalidArgument(f"{text} holds no JSON Schema object.", {"field": "schema"})
    return {"schema": schema}


def print_answer(console: Console, stream: AnswerStream) -> str:
    """Print an answer as it comes and the decision behind it; returns its text."""
    with stream:
        for event in stream:
            if isinstance(event, Delta):
                console.print(event.text, end="", markup=False, highlight=False, soft_wrap=True)
                for call in event.tool_calls:
                    text = f"[bold]{escape(call.name)}[/]({escape(call.arguments_json)})"
                    console.print(text, highlight=False, soft_wrap=True, end="")
            elif isinstance(event, Finished):
                console.print()
                console.print(decision_line(event.decision), highlight=False, soft_wrap=True)
        return stream.answer().text


def converse(
    console: Console,
    client: Client,
    params: GenerateParams,
    read_line: Callable[[], str],
    describe: Callable[[UnderstudyError], str],
) -> None:
    """Talk until the input ends; a failed answer is told and its question forgotten."""
    messages: list[dict[str, object]] = []
    while True:
        try:
            line = read_line().strip()
        except EOFError:
            return
        if not line:
            continue
        messages.append({"role": "user", "content": line})
        try:
            turn: GenerateParams = {**params, "messages": messages}
            text = print_answer(console, client.generate(**turn))
        except UnderstudyError as error:
            messages.pop()
            console.print(describe(error), highlight=False, soft_wrap=True)
        else:
            messages.append({"role": "assistant", "content": text})


def _read_json(name: str, option: str) -> object:
    path = Path(name)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidArgument(f"{option}: {path} cannot be read ({error.strerror}).") from error
    if len(content) > MAX_FILE_BYTES:
        raise InvalidArgument(f"{option}: {path} is larger than {MAX_FILE_BYTES} bytes.")
    try:
        parsed: object = json.loads(content)
    except ValueError as error:
        raise InvalidArgument(f"{option}: {path} is not JSON: {error}.") from error
    return parsed
