"""docs/operations.md: what it says of the chart is backed by a test that exists, or marked."""

import re
from pathlib import Path
from typing import Final

import pytest

from tests.chart.manifests import CHART, PRESETS

ROOT: Final = CHART.parents[1]
GUIDE: Final = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
CITED: Final = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", GUIDE)


def _rows(heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its head."""
    table = re.search(r"(?:^\|.*\n)+", GUIDE.partition(f"## {heading}\n")[2], re.MULTILINE)
    assert table is not None
    lines = table[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


@pytest.mark.parametrize(("path", "name"), CITED)
def test_a_test_that_the_guide_cites_exists(path: str, name: str) -> None:
    source: Path = ROOT / path
    assert re.search(rf"^(async )?def {name}\(", source.read_text(), re.MULTILINE)


@pytest.mark.parametrize("heading", ["Installing", "Upgrading"])
def test_each_line_is_shown_by_a_test_or_marked(heading: str) -> None:
    rows = _rows(heading)
    assert rows
    for row in rows:
        assert "`tests/" in row[-1] or "not tested" in row[-1], row[0]


def test_the_guide_names_every_preset() -> None:
    assert all(preset.name in GUIDE for preset in PRESETS)


def test_values_that_the_guide_names_exist() -> None:
    values = (CHART / "values.yaml").read_text()
    before = GUIDE.partition("## Images")[0]
    named = re.findall(r"`(?:[a-zA-Z]+\.)+([a-zA-Z]+)`", before)
    assert named
    keys = {name for name in named if name not in ("py", "yaml", "md")}
    assert [key for key in sorted(keys) if f"{key}:" not in values] == []
