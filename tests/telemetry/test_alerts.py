"""Alerts: named in the runbook, tested by promtool, firing when they should and silent else."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from deploy.telemetry.rules import RULES, load_rules

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = ROOT / "docs" / "operations.md"
CASES = sorted((Path(__file__).parent / "rules").glob("*.yaml"))
ALERTS = [rule for rule in load_rules() if rule.is_alert]


def headings() -> list[str]:
    return re.findall(r"^#+ (.+)$", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE)


def test_alerts_have_names_severities_and_runbooks_of_their_own() -> None:
    names = [rule.name for rule in ALERTS]
    assert len(set(names)) == len(names)
    for rule in ALERTS:
        assert rule.name.startswith("Understudy")
        assert rule.severity in ("page", "ticket")
        assert rule.runbook == f"docs/operations.md#{rule.name.lower()}"


def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    found = [heading for heading in headings() if re.fullmatch(r"Understudy\w+", heading)]
    assert sorted(found) == sorted(rule.name for rule in ALERTS)


def alerts_of(path: Path, *, is_firing: bool) -> set[str]:
    """Return the alerts that a file of cases expects to fire, or to be silent."""
    return {
        check["alertname"]
        for case in yaml.safe_load(path.read_text())["tests"]
        for check in case["alert_rule_test"]
        if bool(check["exp_alerts"]) == is_firing
    }


def test_each_alert_is_tested_firing_and_silent() -> None:
    names = {rule.name for rule in ALERTS}
    firing = set().union(*(alerts_of(path, is_firing=True) for path in CASES))
    silent = set().union(*(alerts_of(path, is_firing=False) for path in CASES))
    assert firing == silent == names


def test_one_healthy_platform_is_silent_about_everything() -> None:
    (healthy,) = (path for path in CASES if path.stem == "healthy")
    assert alerts_of(healthy, is_firing=False) == {rule.name for rule in ALERTS}
    assert alerts_of(healthy, is_firing=True) == set()


@pytest.mark.telemetry
def test_promtool_accepts_the_rules(promtool: Path) -> None:
    command = [promtool, "check", "rules", "--lint=all", "--lint-fatal", RULES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(load_rules())} rules found" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.telemetry
@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_alerts_fire_and_are_silent_as_the_cases_say(promtool: Path, cases: Path) -> None:
    command = [promtool, "test", "rules", cases]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
