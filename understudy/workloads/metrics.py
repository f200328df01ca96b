"""Figures over answered rows: exact match, tool accuracy, slot F1, schema validity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from understudy.workloads.workload import Arguments, ToolCall


@dataclass(frozen=True, slots=True)
class Figures:
    """Quality over `num_rows` rows; all but the count are shares in [0, 1]."""

    num_rows: int
    exact_match: float
    tool_accuracy: float
    slot_f1: float
    schema_valid: float


def is_exact_match(answer: ToolCall | None, gold: ToolCall) -> bool:
    """Tell whether tool and all arguments are equal after trimming and lower-casing."""
    return answer is not None and answer.name == gold.name and _slots(answer) == _slots(gold)


def figures(pairs: Iterable[tuple[ToolCall | None, ToolCall]]) -> Figures:
    """Score (answer, gold) pairs; None stands for an answer that could not be read."""
    rows = list(pairs)
    num_rows = len(rows)
    if not num_rows:
        return Figures(0, 0.0, 0.0, 0.0, 0.0)
    hits = found = wanted = 0
    for answer, gold in rows:
        expected = _counted(gold)
        predicted = _counted(answer) if answer is not None else Counter[tuple[str, str, str]]()
        hits += (expected & predicted).total()
        found += predicted.total()
        wanted += expected.total()
    return Figures(
        num_rows=num_rows,
        exact_match=sum(is_exact_match(answer, gold) for answer, gold in rows) / num_rows,
        tool_accuracy=sum(answer is not None and answer.name == gold.name for answer, gold in rows)
        / num_rows,
        slot_f1=2 * hits / (found + wanted) if found + wanted else 1.0,
        schema_valid=sum(answer is not None for answer, _ in rows) / num_rows,
    )


def _normal(value: str) -> str:
    return value.strip().lower()


def _slots(call: ToolCall) -> dict[str, str | list[str]]:
    return {
        slot: [_normal(item) for item in value] if isinstance(value, list) else _normal(value)
        for slot, value in call.arguments.items()
    }


def _counted(call: ToolCall) -> Counter[tuple[str, str, str]]:
    return Counter((call.name, slot, value) for slot, value in _flat(call.arguments))


def _flat(arguments: Arguments) -> Iterable[tuple[str, str]]:
    for slot, value in arguments.items():
        for item in value if isinstance(value, list) else [value]:
            yield slot, _normal(item)
