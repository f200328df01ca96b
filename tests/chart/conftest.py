"""Gives the chart's tests a Helm; without one they are skipped with the reason, in CI they fail."""

import os
from typing import Final

import pytest

from deploy.tools.build_helm import find_helm
from tests.chart.manifests import CASES, CHART, Helm, Manifest, containers_of, pod_of, workloads

APPS: Final = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "apps"}}}
ALL_EDGES: Final = {
    "serving.otlpEndpoint": "http://collector.telemetry:4317",
    "networkPolicy.callers": [APPS],
}
"""With these and scaling, everything that the schema declares is in use."""


@pytest.fixture(scope="session")
def helm() -> Helm:
    binary = find_helm(os.environ)
    if binary is None:
        reason = "needs Helm 3.14 or newer: `make setup` builds it where Go is installed"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return Helm(binary)


@pytest.fixture(scope="session")
def defaults(helm: Helm) -> list[Manifest]:
    """The chart as it renders without any value set."""
    return helm.render()


@pytest.fixture(scope="session")
def external(helm: Helm) -> list[Manifest]:
    """The chart with Redis, weights and keys of one's own."""
    return helm.render([CHART / "ci" / "external-values.yaml"])


@pytest.fixture(scope="session")
def scaled(helm: Helm) -> list[Manifest]:
    """The chart with the LLM pool sized by the controller."""
    return helm.render([CHART / "ci" / "scaled-values.yaml"])


@pytest.fixture(scope="session")
def watched(helm: Helm) -> list[Manifest]:
    """The chart with everything that watches, and a collector."""
    return helm.render([CHART / "ci" / "watched-values.yaml"])


@pytest.fixture(scope="session", params=["defaults", *(preset.stem for preset in CASES)])
def manifests(helm: Helm, request: pytest.FixtureRequest) -> list[Manifest]:
    """The chart as it renders with each set of values in ci/, and without any."""
    return helm.render([preset for preset in CASES if preset.stem == request.param])


@pytest.fixture(scope="session")
def helm_images(helm: Helm, defaults: list[Manifest]) -> dict[str, set[str]]:
    """The images of all containers, by set of values."""
    rendered = {"defaults": defaults} | {one.stem: helm.render([one]) for one in CASES}
    return {
        name: {
            container["image"]
            for workload in workloads(manifests)
            for container in containers_of(pod_of(workload))
        }
        for name, manifests in rendered.items()
    }


@pytest.fixture(scope="session")
def everything(helm: Helm) -> list[Manifest]:
    """Every edge within the release is in use."""
    return helm.render([CHART / "ci" / "scaled-values.yaml"], ALL_EDGES)
