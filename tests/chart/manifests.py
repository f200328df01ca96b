"""Reads what `helm template` prints: manifests, their pods, and the containers in them."""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

CHART: Final = Path(__file__).resolve().parents[2] / "charts" / "understudy"
PRESETS: Final = tuple(sorted(CHART.glob("values-*.yaml")))
"""Sets of values that ship with the chart."""
CASES: Final = (*sorted((CHART / "ci").glob("*-values.yaml")), *PRESETS)
"""All sets of values that are rendered and checked."""
RELEASE: Final = "demo"
NAMESPACE: Final = "stage"
WORKLOADS: Final = ("Deployment", "StatefulSet")

Manifest = dict[str, Any]


class RenderError(Exception):
    """Helm refused the values; the message is Helm's."""


@dataclass(frozen=True, slots=True)
class Helm:
    """Renders the chart with one Helm binary, as one release in one namespace."""

    binary: Path

    def run(self, *arguments: str) -> str:
        """Run Helm and return what it printed. Raises RenderError with what it complained about."""
        done = subprocess.run(
            [str(self.binary), *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode != 0:
            raise RenderError(f"{done.stdout}{done.stderr}")
        return done.stdout

    def render(
        self, files: Sequence[Path] = (), values: Mapping[str, object] | None = None
    ) -> list[Manifest]:
        """Render the chart with values files and further `a.b` values."""
        flags = [flag for file in files for flag in ("--values", str(file))]
        flags += [
            f"--set-json={path}={json.dumps(value)}" for path, value in (values or {}).items()
        ]
        text = self.run("template", RELEASE, str(CHART), "--namespace", NAMESPACE, *flags)
        return [manifest for manifest in yaml.load_all(text, yaml.CSafeLoader) if manifest]


def named(manifests: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """Return the one manifest of a kind and name."""
    found = [one for one in manifests if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    assert len(found) == 1, f"{kind} {name}: found {len(found)}"
    return found[0]


def workloads(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Return the manifests that make pods."""
    return [manifest for manifest in manifests if manifest["kind"] in WORKLOADS]


def pod_of(workload: Manifest) -> Manifest:
    """Return the pod's spec of a Deployment, StatefulSet or Job."""
    spec: Manifest = workload["spec"]["template"]["spec"]
    return spec


def jobs(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Return the manifests that make pods which end."""
    return [manifest for manifest in manifests if manifest["kind"] == "Job"]


def all_pods(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Return the specs of all pods, those of Jobs and of `helm test` included."""
    bare = [manifest["spec"] for manifest in manifests if manifest["kind"] == "Pod"]
    return [*map(pod_of, [*workloads(manifests), *jobs(manifests)]), *bare]


def containers_of(pod: Manifest) -> list[Manifest]:
    """Return all containers of a pod, init containers included."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def service_containers(manifests: Sequence[Manifest]) -> Iterator[Manifest]:
    """Yield the containers that run one of our services."""
    for workload in workloads(manifests):
        for container in containers_of(pod_of(workload)):
            if container.get("command", [])[:3] == [
                "python",
                "-m",
                f"services.{container['name']}",
            ]:
                yield container


def environment_of(container: Manifest) -> dict[str, str]:
    """Return a container's variables; a reference reads as what it would lead to."""
    return {
        entry["name"]: entry["value"] if "value" in entry else _referred(entry["valueFrom"])
        for entry in container["env"]
    }


def _referred(source: Manifest) -> str:
    if source == {"fieldRef": {"fieldPath": "metadata.namespace"}}:
        return NAMESPACE
    assert source.keys() == {"secretKeyRef"}
    return "redis://secret:6379"
