"""Reads `rules.yaml` as typed data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import yaml

from deploy.telemetry.expressions import read

RULES: Final = Path(__file__).with_name("rules.yaml")


@dataclass(frozen=True, slots=True)
class Rule:
    """One alert, or one recorded series."""

    name: str
    expression: str
    is_alert: bool
    severity: str
    """`page` or `ticket`; empty for a recorded series."""
    runbook: str
    """Address of its runbook, relative to the repository; empty for a recorded series."""


def load_rules(path: Path = RULES) -> tuple[Rule, ...]:
    """Read all rules, in order."""
    return tuple(
        _rules(cast("Mapping[str, list[Mapping[str, object]]]", yaml.safe_load(path.read_text())))
    )


def recorded_series(rules: tuple[Rule, ...]) -> dict[str, frozenset[str]]:
    """Return the labels of each recorded series by its name."""
    return {rule.name: read(rule.expression).labels for rule in rules if not rule.is_alert}


def _rules(raw: Mapping[str, list[Mapping[str, object]]]) -> Iterator[Rule]:
    for group in raw["groups"]:
        for rule in cast("list[Mapping[str, object]]", group["rules"]):
            labels, annotations = (
                cast("Mapping[str, str]", rule.get(key, {})) for key in ("labels", "annotations")
            )
            yield Rule(
                name=str(rule.get("alert", rule.get("record"))),
                expression=str(rule["expr"]),
                is_alert="alert" in rule,
                severity=labels.get("severity", ""),
                runbook=annotations.get("runbook_url", ""),
            )
