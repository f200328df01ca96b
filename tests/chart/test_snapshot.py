"""The default rendering is the committed one."""

import difflib

import pytest

from tests.chart.manifests import Helm, Manifest
from tests.chart.snapshot import COMMAND, MASK, SNAPSHOT, snapshot_of


def test_the_default_rendering_is_the_committed_one(defaults: list[Manifest]) -> None:
    committed, found = SNAPSHOT.read_text(encoding="utf-8"), snapshot_of(defaults)
    difference = difflib.unified_diff(
        committed.splitlines(), found.splitlines(), "committed", "rendered", lineterm="", n=2
    )
    if committed != found:
        pytest.fail("\n".join([f"If this is meant, renew it: {COMMAND}", *difference]))


def test_a_snapshot_holds_nothing_secret_and_nothing_random(
    helm: Helm, defaults: list[Manifest]
) -> None:
    again = helm.render()
    secrets = [
        [one["data"] for one in found if one["kind"] == "Secret"] for found in (defaults, again)
    ]
    assert secrets[0] != secrets[1], "passwords are drawn anew where there is no cluster to ask"
    assert snapshot_of(defaults) == snapshot_of(again)
    text = SNAPSHOT.read_text(encoding="utf-8")
    assert f": {MASK}\n" in text
    values = [value for data in secrets[0] for value in data.values()]
    assert not any(value in text for value in values)
