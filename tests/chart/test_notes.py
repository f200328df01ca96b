"""What Helm prints after an installation ends with a command that works."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from tests.chart.manifests import CASES, CHART, Helm, Manifest, named

WRAPPER = """
kind: Notes
notes: {{ include "notes" . | quote }}
"""


@pytest.fixture(scope="module")
def noted_chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the chart with its notes as a manifest, since `helm template` skips notes."""
    chart = tmp_path_factory.mktemp("charts") / "understudy"
    shutil.copytree(CHART, chart)
    notes = (chart / "templates" / "NOTES.txt").read_text()
    (chart / "templates" / "_notes.tpl").write_text(f'{{{{ define "notes" }}}}{notes}{{{{ end }}}}')
    (chart / "templates" / "notes.yaml").write_text(WRAPPER)
    return chart


def _notes(helm: Helm, chart: Path, *flags: str) -> list[str]:
    only = ("--namespace", "stage", "--show-only", "templates/notes.yaml")
    text = str(yaml.safe_load(helm.run("template", "demo", str(chart), *only, *flags))["notes"])
    return text.rstrip().splitlines()


def test_the_last_line_asks_the_router_through_the_forwarded_port(
    helm: Helm, noted_chart: Path, defaults: list[Manifest]
) -> None:
    lines = _notes(helm, noted_chart)
    words = shlex.split(lines[-1])
    assert words[0] == "curl"
    body = json.loads(words[words.index("--data") + 1])
    assert body["model"] == "auto"
    [forward] = [shlex.split(line.rstrip(" &")) for line in lines if "port-forward" in line]
    local_port, _, service_port = forward[-1].partition(":")
    assert f"127.0.0.1:{local_port}/v1/chat/completions" in lines[-1]
    service = named(defaults, "Service", forward[-2].removeprefix("service/"))
    assert int(service_port) in [port["port"] for port in service["spec"]["ports"]]
    assert forward[1:3] == ["--namespace", "stage"]


def test_the_key_in_the_last_line_is_read_from_the_secret_of_the_chart(
    helm: Helm, noted_chart: Path, defaults: list[Manifest]
) -> None:
    [line] = [line for line in _notes(helm, noted_chart) if "KEY=" in line]
    secret = named(defaults, "Secret", "demo-understudy-keys")
    assert f"get secret {secret['metadata']['name']} " in line
    assert "{.data.api-key}" in line
    assert "api-key" in secret["data"]


def test_with_a_secret_of_your_own_no_key_is_invented(helm: Helm, noted_chart: Path) -> None:
    [preset] = [one for one in CASES if one.stem == "external-values"]
    lines = _notes(helm, noted_chart, "--values", str(preset))
    assert "  KEY=..." in lines
    assert any("Secret callers" in line for line in lines)
