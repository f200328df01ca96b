"""Makes the chart's values table and values.schema.json from the comments of values.yaml.

A key's comment is its description. A comment line `@schema {json}` narrows the type inferred from
the default (for a list of mappings, `required` speaks of its items); a key without description is
refused. `--check` writes nothing and fails on a difference. Run it as
`python deploy/tools/chart_docs.py`.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

CHART: Final = Path(__file__).resolve().parents[2] / "charts" / "understudy"
START: Final = "<!-- values: start -->"
END: Final = "<!-- values: end -->"
ANNOTATION: Final = "@schema "
TYPES: Final = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}

Schema = dict[str, object]


class ValuesError(Exception):
    """values.yaml cannot be documented; the message names the key."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of values.yaml with its comment, its default and, for a mapping, its children."""

    path: str
    description: str
    annotation: Schema
    default: object
    children: "tuple[Key, ...]"
    items: "tuple[Key, ...]"

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]


def read_keys(text: str) -> tuple[Key, ...]:
    """Read values.yaml into keys, in order."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise ValuesError("values.yaml is not a mapping")
    return tuple(_read_mapping(root, "", text.splitlines()))


def _read_mapping(node: yaml.MappingNode, prefix: str, lines: Sequence[str]) -> Iterator[Key]:
    for key_node, value_node in node.value:
        path = f"{prefix}{key_node.value}"
        description, annotation = _comment_above(key_node.start_mark.line, lines, path)
        yield _read_key(path, description, annotation, value_node, lines)


def _read_key(
    path: str, description: str, annotation: Schema, node: yaml.Node, lines: Sequence[str]
) -> Key:
    default = yaml.SafeLoader("").construct_object(node, deep=True)
    children: tuple[Key, ...] = ()
    items: tuple[Key, ...] = ()
    if isinstance(node, yaml.MappingNode) and not node.flow_style and "$ref" not in annotation:
        children = tuple(_read_mapping(node, f"{path}.", lines))
    elif isinstance(node, yaml.SequenceNode) and not node.flow_style:
        first = node.value[0]
        if not isinstance(first, yaml.MappingNode):
            raise ValuesError(f"{path}: a list in block style holds mappings, its first documented")
        items = tuple(_read_mapping(first, f"{path}[].", lines))
    if not description and not children:
        raise ValuesError(f"{path} has no comment: say what it means above it")
    return Key(path, description, annotation, default, children, items)


def _comment_above(line: int, lines: Sequence[str], path: str) -> tuple[str, Schema]:
    """Return description and annotation from the comment lines right above a key."""
    if lines[line].lstrip().startswith("- #"):
        line += 1
    block: list[str] = []
    while line > 0:
        line -= 1
        text = lines[line].strip().removeprefix("- ")
        if not text.startswith("#"):
            break
        block.insert(0, text.removeprefix("#").strip())
    annotations = [text for text in block if text.startswith(ANNOTATION)]
    description = " ".join(text for text in block if not text.startswith(ANNOTATION))
    try:
        parsed = [json.loads(text.removeprefix(ANNOTATION)) for text in annotations]
    except ValueError as error:
        raise ValuesError(f"{path}: its @schema line is not JSON: {error}") from error
    return description, {name: value for one in parsed for name, value in one.items()}


def make_schema(keys: Sequence[Key]) -> Schema:
    """Return the JSON Schema of the values: unknown keys are refused everywhere."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the understudy chart",
        **_object_schema(keys),
    }


def _object_schema(keys: Sequence[Key]) -> Schema:
    properties = {key.name: _key_schema(key) for key in keys}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _key_schema(key: Key) -> Schema:
    described: Schema = {"description": key.description} if key.description else {}
    if "$ref" in key.annotation:
        return dict(key.annotation)
    if key.children:
        return {**described, **_object_schema(key.children), **key.annotation}
    if key.items:
        required, annotation = key.annotation.get("required", []), dict(key.annotation)
        annotation.pop("required", None)
        items: Schema = {**_object_schema(key.items), "required": required}
        return {**described, "type": "array", "items": items, **annotation}
    return {**described, "type": _type_of(key.path, key.default), **key.annotation}


def _type_of(path: str, default: object) -> str:
    if isinstance(default, Mapping):
        return "object"
    if isinstance(default, list):
        return "array"
    if type(default).__name__ not in TYPES:
        raise ValuesError(f"{path} has no default whose type could be told: it is {default!r}")
    return TYPES[type(default).__name__]


def make_table(keys: Sequence[Key]) -> str:
    """Return the values as a Markdown table, one row per leaf."""
    rows = ["| Value | Default | Meaning |", "|---|---|---|"]
    for key in _leaves(keys):
        default = json.dumps(key.default) if not key.items else "see values.yaml"
        meaning = key.description.replace("|", r"\|")
        rows.append(f"| `{key.path}` | `{default}` | {meaning} |")
    return "\n".join(rows)


def _leaves(keys: Sequence[Key]) -> Iterator[Key]:
    for key in keys:
        if not key.children:
            yield key
        yield from _leaves(key.children or key.items)


def make_files(chart: Path) -> dict[Path, str]:
    """Return the generated files by path, as they should be."""
    keys = read_keys((chart / "values.yaml").read_text(encoding="utf-8"))
    readme = chart / "README.md"
    text = readme.read_text(encoding="utf-8")
    head, start, rest = text.partition(START)
    _, end, tail = rest.partition(END)
    if not (start and end):
        raise ValuesError(f"README.md lacks the lines {START} and {END}")
    return {
        readme: f"{head}{START}\n{make_table(keys)}\n{END}{tail}",
        chart / "values.schema.json": json.dumps(make_schema(keys), indent=2) + "\n",
    }


def main(arguments: Sequence[str]) -> int:
    """Write the generated files, or with `--check` compare them; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    parser.add_argument("--chart", type=Path, default=CHART, help="folder of the chart")
    options = parser.parse_args(arguments)
    try:
        files = make_files(options.chart)
    except ValuesError as error:
        sys.stderr.write(f"chart_docs: {error}\n")
        return 2
    stale = [path for path, text in files.items() if _is_stale(path, text)]
    for path in stale:
        sys.stdout.write(f"{'stale' if options.check else 'wrote'}: {path.name}\n")
        if not options.check:
            path.write_text(files[path], encoding="utf-8")
    if options.check and stale:
        sys.stderr.write("chart_docs: run `python deploy/tools/chart_docs.py`\n")
    return int(options.check and bool(stale))


def _is_stale(path: Path, text: str) -> bool:
    return not path.is_file() or path.read_text(encoding="utf-8") != text


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
