"""The control plane is the real one: admission, scheduling, and a network of its own."""

import json
import subprocess
from typing import Any

import pytest

from tests.cluster.kube import Kube, Refused, container, pod, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

GPU = {"limits": {"nvidia.com/gpu": "4"}}
TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def test_versions_are_the_pinned_ones(kube: Kube) -> None:
    found = json.loads(kube.run("version", "--output", "json"))
    versions = {found[side]["gitVersion"] for side in ("clientVersion", "serverVersion")}
    assert versions == {"v1.34.3"}


def test_every_node_is_ready(kube: Kube) -> None:
    kube.run("wait", "--for=condition=Ready", "nodes", "--all", "--timeout=60s")


@pytest.mark.parametrize(
    "broken",
    [
        {"securityContext": {"privileged": True}},
        {"securityContext": {"runAsUser": 0}},
        {"securityContext": {"allowPrivilegeEscalation": True}},
        {"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}},
    ],
)
def test_a_pod_that_is_not_restricted_is_refused(
    kube: Kube, broken: dict[str, dict[str, object]]
) -> None:
    with pytest.raises(Refused, match='violates PodSecurity "restricted:latest"'):
        kube.apply(pod("bad", container("true", **broken)))


def test_an_unknown_field_is_refused_by_its_name(kube: Kube) -> None:
    with pytest.raises(Refused, match="unknown field"):
        kube.apply(pod("bad", container("true", comand=["x"])))


def test_gpus_are_scheduled_by_count_and_more_stay_pending(kube: Kube) -> None:
    names = [f"gpu-{number}" for number in range(5)]
    kube.apply(
        *(
            pod(name, container("sleep 600", resources=GPU), tolerations=[TOLERATION])
            for name in names
        )
    )

    def items() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = kube.get("pods", selector="app")["items"]
        return found

    wait_until(lambda: len(kube.events("FailedScheduling")) > 0, "a pod that finds no node")
    wait_until(lambda: sum("nodeName" in item["spec"] for item in items()) == 4, "four places")
    nodes = sorted(item["spec"].get("nodeName", "") for item in items())
    assert nodes == ["", "gpu-0", "gpu-0", "gpu-1", "gpu-1"]
    assert any(
        "Insufficient nvidia.com/gpu" in message for message in kube.events("FailedScheduling")
    )


def test_nothing_outside_can_be_reached() -> None:
    routes = subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert "default" not in routes
    names = {line.split(": ")[1].split("@")[0] for line in links.splitlines()}
    assert all(name in ("lo", "cluster0") or name.startswith("pod") for name in names)


def test_a_node_that_was_given_up_comes_back(kube: Kube) -> None:
    lost = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}
    patch = json.dumps({"status": {"conditions": [lost]}})
    kube.run("patch", "node", "cpu-1", "--subresource=status", "--type=strategic", "--patch", patch)
    kube.run("wait", "--for=condition=Ready=true", "node/cpu-1", "--timeout=60s")
