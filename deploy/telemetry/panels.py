"""Dashboards as plain data, and their JSON for Grafana.

A panel says what it shows and in which unit; place, colours and data source are the same for all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from deploy.telemetry.queries import quantile

GRID_WIDTH: Final = 24
PANEL_HEIGHT: Final = 8
SCHEMA_VERSION: Final = 39
"""Of Grafana 11; later ones convert it by themselves."""
DATA_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Query:
    """One line, or one group of lines, of a panel."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture."""

    title: str
    meaning: str
    """What a reader should see in it."""
    unit: str
    """Unit as Grafana calls it, such as `s`, `percentunit` or `reqps`."""
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat"] = "timeseries"
    width: int = 8
    is_stacked: bool = False
    has_exemplars: bool = False
    """Whether its points lead to traces; for histograms that carry exemplars."""


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard; `name` is its file and, with a prefix, its id in Grafana."""

    name: str
    title: str
    meaning: str
    rows: tuple[Row, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """Return the panels of all rows."""
        return tuple(panel for row in self.rows for panel in row.panels)

    def json(self) -> Json:
        """Return it as Grafana reads it."""
        return {
            "uid": f"understudy-{self.name}",
            "title": f"Understudy / {self.title}",
            "description": self.meaning,
            "tags": ["understudy"],
            "schemaVersion": SCHEMA_VERSION,
            "editable": False,
            "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"},
            "templating": {"list": [_data_source(), _namespace()]},
            "links": [{"type": "dashboards", "tags": ["understudy"], "title": "Understudy"}],
            "panels": list(_placed(self.rows)),
        }


def quantiles(metric: str, by: str) -> tuple[Query, ...]:
    """Return median and tails of a histogram, by one label."""
    return tuple(
        Query(quantile(share, metric, by=(by,)), f"{{{{{by}}}}} p{share * 100:g}")
        for share in (0.5, 0.9, 0.99)
    )


def _placed(rows: tuple[Row, ...]) -> Iterator[Json]:
    """Yield rows and panels, left to right, each line full before the next one starts."""
    number = y = 0
    for row in rows:
        number += 1
        yield _heading(row, number, y)
        x, y = 0, y + 1
        for panel in row.panels:
            if x + panel.width > GRID_WIDTH:
                x, y = 0, y + PANEL_HEIGHT
            number += 1
            yield _panel(panel, number, x, y)
            x += panel.width
        y += PANEL_HEIGHT


def _heading(row: Row, number: int, y: int) -> Json:
    place = {"x": 0, "y": y, "w": GRID_WIDTH, "h": 1}
    return {"id": number, "type": "row", "title": row.title, "gridPos": place, "panels": []}


def _panel(panel: Panel, number: int, x: int, y: int) -> Json:
    custom = {"stacking": {"mode": "normal"}, "fillOpacity": 30} if panel.is_stacked else {}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.meaning,
        "datasource": DATA_SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": PANEL_HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": custom}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATA_SOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
                "exemplar": panel.has_exemplars,
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def _data_source() -> Json:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Source"}


def _namespace() -> Json:
    return {
        "name": "namespace",
        "type": "query",
        "label": "Namespace",
        "datasource": DATA_SOURCE,
        "query": "label_values(understudy_serving_active_calls, namespace)",
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }
