"""The utterances and their deterministic split.

Rows are ranked by the SHA-256 of their text, so a text that occurs twice stays in one split and
adding rows moves few others: the first 2,000 rows are `dev`, the next 1,500 `calibration`, the
rest `train`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from understudy.errors import InvalidArgument
from understudy.workloads.workload import ToolCall

Split = Literal["dev", "calibration", "train"]
NUM_DEV = 2000
NUM_CALIBRATION = 1500


@dataclass(frozen=True, slots=True)
class Row:
    """One utterance and the call it asks for."""

    text: str
    gold: ToolCall


def load_split(split: Split) -> list[Row]:
    """Return the rows of one split of the shipped data, in hash order."""
    resource = resources.files("understudy.workloads.snips") / "train.jsonl.gz"
    rows = parse_rows(gzip.decompress(resource.read_bytes()).decode().split("\n"), resource.name)
    ranked = sorted(rows, key=lambda row: (text_hash(row.text), row.gold.to_json()))
    first_calibration = _group_end(ranked, NUM_DEV)
    first_train = _group_end(ranked, first_calibration + NUM_CALIBRATION)
    return {
        "dev": ranked[:first_calibration],
        "calibration": ranked[first_calibration:first_train],
        "train": ranked[first_train:],
    }[split]


def load_rows(path: Path) -> list[Row]:
    """Read rows of the same format from a file, gzipped where its name ends in .gz."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"The rows in {path} cannot be read: {error}") from error
    return parse_rows(text.split("\n"), path.name)


def parse_rows(lines: Iterable[str], name: str) -> list[Row]:
    """Parse JSON lines; a malformed row is refused with its line number."""
    return [_row(line, name, number) for number, line in enumerate(lines, 1) if line.strip()]


def text_hash(text: str) -> str:
    """Return the hash rows are ranked by."""
    return hashlib.sha256(text.encode()).hexdigest()


def _group_end(ranked: list[Row], index: int) -> int:
    """Move a boundary forwards until it no longer separates two rows of the same text."""
    while 0 < index < len(ranked) and ranked[index].text == ranked[index - 1].text:
        index += 1
    return index


def _row(line: str, name: str, number: int) -> Row:
    try:
        row = json.loads(line)
        text, tool, arguments = row["text"], row["tool"], row["arguments"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(
            f"{name}, line {number}: expected an object with text, tool and arguments ({error!r})."
        ) from error
    is_proper = isinstance(text, str) and isinstance(tool, str) and isinstance(arguments, dict)
    if not is_proper or not all(map(_is_value, arguments.values())):
        raise InvalidArgument(
            f"{name}, line {number}: text and tool must be strings, arguments must map slots to a "
            "string or a list of strings."
        )
    return Row(text, ToolCall(tool, arguments))


def _is_value(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return isinstance(value, str)
