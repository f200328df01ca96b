"""The dashboards as Grafana gets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.telemetry.boards import DASHBOARDS
from deploy.telemetry.expressions import plain, read
from deploy.telemetry.generate import (
    FOLDER,
    main,
    rendered,
    stale,
    stale_copies,
    write,
    write_copies,
)
from deploy.telemetry.panels import GRID_WIDTH, Dashboard
from deploy.telemetry.schema import Schema

TOPICS = {"request-path", "slm-first", "afd", "kv-tier", "flywheel", "scaling"}


def test_the_committed_files_are_what_is_generated(capsys: pytest.CaptureFixture[str]) -> None:
    assert stale() == []
    assert stale_copies() == []
    assert main(["--check"]) == 0
    assert capsys.readouterr().out == ""


def test_a_file_that_differs_or_belongs_to_nobody_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    assert stale(tmp_path) == []
    (tmp_path / "afd.json").write_text("{}")
    (tmp_path / "old.json").write_text("{}")
    (tmp_path / "scaling.json").unlink()
    assert stale(tmp_path) == ["afd.json", "old.json", "scaling.json"]
    write(tmp_path)
    assert stale(tmp_path) == []


def test_a_copy_of_the_chart_that_differs_or_is_of_nothing_is_named(tmp_path: Path) -> None:
    write_copies(tmp_path)
    assert stale_copies(tmp_path) == []
    (tmp_path / "rules.yaml").write_text("groups: []")
    (tmp_path / "dashboards" / "old.json").write_text("{}")
    (tmp_path / "collector.yaml").unlink()
    assert stale_copies(tmp_path) == ["collector.yaml", "dashboards/old.json", "rules.yaml"]
    write_copies(tmp_path)
    assert stale_copies(tmp_path) == []


def test_there_is_one_dashboard_for_each_topic() -> None:
    assert {board.name for board in DASHBOARDS} == TOPICS
    assert (
        {path.stem for path in FOLDER.glob("*.json")}
        == TOPICS
        == {name.removesuffix(".json") for name in rendered()}
    )


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.name)
def test_panels_stand_side_by_side_and_say_what_they_show(board: Dashboard) -> None:
    panels = board.json()["panels"]
    assert isinstance(panels, list)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert max(x for x, _ in cells) < GRID_WIDTH
    numbers = [panel["id"] for panel in panels]
    assert len(set(numbers)) == len(numbers)
    titles = [panel.title for panel in board.panels]
    assert len(set(titles)) == len(titles)
    for panel in board.panels:
        assert panel.meaning.endswith(".")
        assert panel.queries


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.name)
def test_every_query_is_limited_to_the_namespace_on_show(board: Dashboard) -> None:
    for panel in board.panels:
        for query in panel.queries:
            for selector in read(plain(query.expression)).selectors:
                assert ("namespace", "=~", ".*") in [
                    (one.label, one.operator, one.value) for one in selector.matchers
                ]


def test_panels_that_lead_to_traces_show_histograms_with_exemplars(schema: Schema) -> None:
    leading = [panel for board in DASHBOARDS for panel in board.panels if panel.has_exemplars]
    assert leading
    for panel in leading:
        for query in panel.queries:
            for selector in read(plain(query.expression)).selectors:
                metric = schema.metric_of(selector.name)
                assert metric is not None and metric.has_exemplars, panel.title
