"""The operations guide: each failure backed by a test or marked, every name one that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.telemetry.schema import Schema

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
TABLE = OPERATIONS.partition("## What fails, and what callers see")[2].partition("\n## ")[0]
ROWS = [line.strip("|").split("|") for line in TABLE.splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_each_failure_names_a_test_that_exists_or_says_that_there_is_none(row: list[str]) -> None:
    what, seen, how_long, shown_by = (cell.strip() for cell in row)
    assert what and seen and how_long
    found = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", shown_by)
    assert found or "not tested" in shown_by
    for path, name in found:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8") or not name


def test_the_components_that_the_guide_names_are_those_of_the_scrape(schema: Schema) -> None:
    (line,) = (line for line in OPERATIONS.splitlines() if line.startswith("**Scraping.**"))
    named = set(re.findall(r"`(\w+)`", line))
    assert {"component", "pool", "namespace", "pod"} <= named & schema.target_labels.keys()
    assert {span.service for span in schema.spans.values()} <= named


def test_every_setting_that_the_guide_names_exists() -> None:
    sources = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("services", "understudy/serving")
        for path in (ROOT / folder).rglob("*settings.py")
    )
    for name in set(re.findall(r"UNDERSTUDY_([A-Z]+)_([A-Z_]+)", OPERATIONS)):
        assert f"    {name[1].lower()}: " in sources, "_".join(name)
