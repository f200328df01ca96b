"""Examples survive the disk and are joined in order; augmented rows keep their labels true."""

from pathlib import Path

import pytest

from services.distiller.augment import augmented
from services.distiller.examples import Examples
from tests.unit.distiller.parts import examples
from understudy.errors import FailedPrecondition
from understudy.workloads.snips.dataset import load_split
from understudy.workloads.workload import ToolCall


def same(left: Examples, right: Examples) -> bool:
    return len(left) == len(right) and all(
        a.tokens.tolist() == b.tokens.tolist()
        and a.prompt_length == b.prompt_length
        and a.free.tolist() == b.free.tolist()
        and [c.tolist() for c in a.candidates] == [c.tolist() for c in b.candidates]
        for a, b in zip(left, right, strict=True)
    )


def test_examples_survive_the_disk(tmp_path: Path) -> None:
    data = examples(5)
    data.save(tmp_path / "examples.npz")
    assert same(Examples.load(tmp_path / "examples.npz"), data)


def test_joined_examples_are_those_of_all_parts_in_order() -> None:
    parts = [examples(3, seed=1), examples(4, seed=2), examples(2, seed=3)]
    expected = Examples.pack([example for part in parts for example in part])
    assert same(Examples.joined(parts), expected)


def test_the_first_examples_are_the_first_ones() -> None:
    data = examples(6)
    assert same(data.first(2), Examples.pack([data[0], data[1]]))
    assert len(data.first(100)) == 6


def test_unreadable_examples_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "examples.npz").write_bytes(b"no")
    with pytest.raises(FailedPrecondition, match=r"examples\.npz"):
        Examples.load(tmp_path / "examples.npz")


def test_augmented_values_are_spans_of_the_new_text_and_rows_are_new() -> None:
    rows = load_split("train")[:400]
    known = {row.text for row in rows}
    made = augmented(rows, 100, seed=4)
    assert len(made) == 100
    for row in made:
        values = [value for value in row.gold.arguments.values() if isinstance(value, str)]
        assert len(values) == len(row.gold.arguments)
        assert all(row.text.count(value) == 1 for value in values)
    assert sum(row.text not in known for row in made) >= 95


def test_augmentation_is_a_function_of_its_seed() -> None:
    rows = load_split("train")[:100]
    assert augmented(rows, 10, seed=1) == augmented(rows, 10, seed=1)
    assert augmented(rows, 10, seed=1) != augmented(rows, 10, seed=2)


def test_the_tool_and_the_order_of_slots_stay() -> None:
    rows = load_split("train")[:300]
    shapes = {(row.gold.name, tuple(row.gold.arguments)) for row in rows}
    for row in augmented(rows, 50, seed=2):
        assert isinstance(row.gold, ToolCall)
        assert (row.gold.name, tuple(row.gold.arguments)) in shapes
