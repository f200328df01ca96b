"""New utterances out of old ones: slot values exchanged between rows, labels kept by construction.

A student that only saw each name once learns the names; one that saw each sentence with many
names learns to copy. Values come from the same slot of other rows, or are crossed from two of
them, so that word order and casing stay plausible.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from understudy.workloads.snips.dataset import Row
from understudy.workloads.workload import ArgumentValue, ToolCall

OPEN_SLOTS = frozenset(
    {
        "album",
        "artist",
        "entity_name",
        "geographic_poi",
        "location_name",
        "movie_name",
        "object_name",
        "playlist",
        "poi",
        "restaurant_name",
        "served_dish",
        "track",
    }
)
"""Slots whose values are names: any words can fill them."""

Pool = Mapping[str, Sequence[str]]


def augmented(rows: Sequence[Row], num_rows: int, seed: int) -> list[Row]:
    """Return `num_rows` new rows; each changes at least one value of the row it comes from."""
    generator = random.Random(seed)  # noqa: S311 - no secret depends on it
    pool = _values_of_slots(rows)
    made: list[Row] = []
    while len(made) < num_rows:
        row = _exchanged(generator.choice(rows), pool, generator)
        if row is not None:
            made.append(row)
    return made


def _values_of_slots(rows: Sequence[Row]) -> Pool:
    pool: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for slot, value in _flat(row.gold.arguments):
            pool[slot].append(value)
    return pool


def _exchanged(row: Row, pool: Pool, generator: random.Random) -> Row | None:
    spans = _spans(row)
    if not spans or any(isinstance(value, list) for value in row.gold.arguments.values()):
        return None
    keep = generator.choice((0.2, 0.5))
    text, cursor, arguments = "", 0, dict[str, ArgumentValue]()
    for start, end, slot in spans:
        old = row.text[start:end]
        new = old if generator.random() < keep else _draw(slot, pool[slot], generator)
        text += row.text[cursor:start] + new
        arguments[slot] = new
        cursor = end
    text += row.text[cursor:]
    if text == row.text or any(text.count(str(value)) > 1 for value in arguments.values()):
        return None
    in_order = {slot: arguments[slot] for slot in row.gold.arguments}
    return Row(text, ToolCall(row.gold.name, in_order))


def _draw(slot: str, values: Sequence[str], generator: random.Random) -> str:
    value = generator.choice(values)
    if slot in OPEN_SLOTS and generator.random() < 0.3:
        head, tail = value.split(), generator.choice(values).split()
        crossed = head[: 1 + len(head) // 2] + tail[len(tail) // 2 :]
        value = " ".join(crossed[:8])
    return value


def _spans(row: Row) -> list[tuple[int, int, str]]:
    """Return where each value stands, in order; empty where that is not certain."""
    spans = []
    for slot, value in _flat(row.gold.arguments):
        if row.text.count(value) != 1:
            return []
        start = row.text.index(value)
        spans.append((start, start + len(value), slot))
    spans.sort()
    overlaps = any(left[1] > right[0] for left, right in pairwise(spans))
    return [] if overlaps else spans


def _flat(arguments: Mapping[str, ArgumentValue]) -> Iterator[tuple[str, str]]:
    for slot, value in arguments.items():
        for item in value if isinstance(value, list) else [value]:
            yield slot, item
