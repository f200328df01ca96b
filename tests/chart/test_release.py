"""A release on a real control plane: installed from the laptop's preset, asked, sized, rolled back.

Runs inside of the cluster of deploy/cluster, whose node agent starts the pods as processes:
`python -m deploy.cluster run python -m pytest -m cluster tests/chart/test_release.py`. Elsewhere it
is not collected. The tests go on from one another, as an operator does.
"""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.chart.manifests import CHART, Helm
from tests.cluster.kube import Kube, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]
RELEASE = "understudy"
WAIT_S = 900
LAPTOP = CHART / "values-laptop.yaml"
SIZED = {
    "scaling": {
        "enabled": True,
        "settings": {"intervalS": 5},
        "pools": [{"name": "llm", "attention": {"maxReplicas": 2}, "experts": {"minReplicas": 3}}],
    }
}

SLEEPY = {
    "scaling": {
        "enabled": True,
        "settings": {"intervalS": 5},
        "downCoolDownS": 5,
        "downWindowS": 5,
        "pools": [{"name": "llm", "idleS": 15, "startS": 20}],
    }
}


@dataclass(frozen=True)
class Release:
    """The release, and Helm to change it."""

    kube: Kube
    helm: Helm

    def run(self, *arguments: str) -> str:
        """Run Helm in the namespace; return what it printed."""
        done = subprocess.run(
            [str(self.helm.binary), "--namespace", self.kube.namespace, *arguments],
            capture_output=True,
            text=True,
            timeout=WAIT_S + 60,
            check=False,
        )
        pods = "" if done.returncode == 0 else self.kube.run("get", "pods", "--output", "wide")
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{pods}"
        return done.stdout

    def change(self, *files: Path) -> None:
        """Install or upgrade from values, and wait until all is ready."""
        values = [f"--values={file}" for file in (LAPTOP, *files)]
        wait = ("--wait", f"--timeout={WAIT_S}s")
        self.run("upgrade", "--install", RELEASE, str(CHART), *values, *wait)

    def test(self) -> str:
        """Run `helm test`; return what Helm and the pod said."""
        return self.run("test", RELEASE, "--logs", f"--timeout={WAIT_S}s")

    def size(self, kind: str, part: str) -> int:
        """Return the replicas that a workload is to have."""
        return int(self.kube.get(kind, f"{RELEASE}-{part}")["spec"]["replicas"])

    def has(self, kind: str, part: str) -> bool:
        """Say whether there is a workload of a kind."""
        items = self.kube.get(kind)["items"]
        return f"{RELEASE}-{part}" in {one["metadata"]["name"] for one in items}


@pytest.fixture(scope="module")
def release(helm: Helm) -> Iterator[Release]:
    """Install the laptop's preset into a namespace that enforces the restricted standard."""
    found = Release(Kube("laptop"), helm)
    found.kube.create_namespace()
    found.change()
    yield found
    found.run("uninstall", RELEASE, "--wait", f"--timeout={WAIT_S}s")
    found.kube.delete_namespace()


def test_helm_test_gets_an_answer_in_a_fresh_release(release: Release) -> None:
    said = release.test()
    assert "Succeeded" in said
    assert "answered by" in said


def test_the_controller_sizes_a_pool_whose_experts_it_finds_by_their_service(
    release: Release, tmp_path: Path
) -> None:
    sized = tmp_path / "sized.yaml"
    sized.write_text(yaml.safe_dump(SIZED))
    release.change(sized)

    def is_ready() -> bool:
        status = release.kube.get("deployment", f"{RELEASE}-llm-experts")["status"]
        return bool(status.get("readyReplicas") == 3)

    wait_until(is_ready, "three expert workers", WAIT_S)
    messages = release.kube.events("ScaledUp")
    assert any(message.startswith("1 -> 3 replicas, 3 needed") for message in messages)
    lease = release.kube.get("lease", f"{RELEASE}-controller")
    assert lease["spec"]["holderIdentity"].startswith(f"{RELEASE}-controller-")
    assert not release.has("statefulset", "llm-experts")
    assert "answered by" in release.test()


def test_a_pool_that_sleeps_is_woken_by_the_next_request(release: Release, tmp_path: Path) -> None:
    sleepy = tmp_path / "sleepy.yaml"
    sleepy.write_text(yaml.safe_dump(SLEEPY))
    release.change(sleepy)

    def is_asleep() -> bool:
        # A worker that still drains would answer without any awakening.
        return not release.kube.get("pods", selector="understudy.dev/pool=llm")["items"]

    def num_wakened() -> int:
        events = release.kube.get("events")["items"]
        return sum(one["reason"] == "ScaledUp" for one in events)

    wait_until(is_asleep, "the pool to sleep", WAIT_S)
    before = num_wakened()
    assert "answered by" in release.test()
    # It may sleep again by now: that it woke is told by the controller.
    assert num_wakened() > before


def test_a_rollback_brings_the_workloads_of_the_first_revision_back(release: Release) -> None:
    release.run("rollback", RELEASE, "1", "--wait", f"--timeout={WAIT_S}s")
    assert release.has("statefulset", "llm-experts")
    assert not release.has("deployment", "llm-experts")
    assert "answered by" in release.test()
