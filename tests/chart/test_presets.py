"""What the presets promise: the laptop's fits a laptop, a cloud's says what that cloud needs.

That each renders, is linted and keeps every rule of the chart is tested with all other values.
"""

from typing import Any, Final

import pytest

from tests.chart.manifests import (
    CHART,
    PRESETS,
    Helm,
    Manifest,
    containers_of,
    named,
    pod_of,
    workloads,
)

CLOUDS: Final = {
    "gke": ("cloud.google.com/gke-nodepool", "premium-rwo", "networking.gke.io/"),
    "eks": ("eks.amazonaws.com/nodegroup", "gp3", "service.beta.kubernetes.io/aws-"),
    "aks": (
        "kubernetes.azure.com/agentpool",
        "managed-csi-premium",
        "service.beta.kubernetes.io/azure-",
    ),
}
LAPTOP_CPUS: Final = 4
LAPTOP_MIB: Final = 8 * 1024
UNITS: Final = {"Mi": 1, "Gi": 1024}


@pytest.fixture(scope="module")
def presets(helm: Helm) -> dict[str, list[Manifest]]:
    return {one.stem.removeprefix("values-"): helm.render([one]) for one in PRESETS}


def _cpus(text: str) -> float:
    return float(text.removesuffix("m")) / (1000 if text.endswith("m") else 1)


def _mib(text: str) -> int:
    return int(text[:-2]) * UNITS[text[-2:]]


def _workers(manifests: list[Manifest]) -> list[Manifest]:
    return [
        pod_of(one)
        for one in workloads(manifests)
        if "understudy.dev/pool" in one["metadata"]["labels"]
    ]


def test_there_are_presets_for_a_laptop_for_gpus_and_for_each_cloud(
    presets: dict[str, Any],
) -> None:
    assert presets.keys() == {"laptop", "generic-gpu", "external-engines", *CLOUDS}


def test_every_preset_is_named_in_the_readme(presets: dict[str, Any]) -> None:
    readme = (CHART / "README.md").read_text()
    assert all(f"`values-{name}.yaml`" in readme for name in presets)


def test_the_laptop_preset_asks_for_no_more_than_a_laptop_has(
    presets: dict[str, list[Manifest]],
) -> None:
    requests = [
        (container["resources"]["requests"], workload["spec"]["replicas"])
        for workload in workloads(presets["laptop"])
        for container in containers_of(pod_of(workload))
    ]
    assert sum(_cpus(one["cpu"]) * count for one, count in requests) <= LAPTOP_CPUS
    assert sum(_mib(one["memory"]) * count for one, count in requests) <= LAPTOP_MIB


def test_the_laptop_preset_runs_everything_that_the_defaults_run(
    presets: dict[str, list[Manifest]], defaults: list[Manifest]
) -> None:
    def names(manifests: list[Manifest]) -> set[str]:
        return {one["metadata"]["name"] for one in workloads(manifests)}

    assert names(presets["laptop"]) == names(defaults)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_workers_run_on_their_own_nodes_and_nobody_else_does(
    presets: dict[str, list[Manifest]], cloud: str
) -> None:
    label, _, _ = CLOUDS[cloud]
    workers = _workers(presets[cloud])
    assert len(workers) == 3
    for pod in workers:
        assert pod["nodeSelector"] == {label: "understudy"}
        [toleration] = pod["tolerations"]
        assert (toleration["key"], toleration["value"]) == ("dedicated", "understudy")
    others = [pod_of(one) for one in workloads(presets[cloud]) if pod_of(one) not in workers]
    assert not any("nodeSelector" in pod or "tolerations" in pod for pod in others)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_volumes_are_of_the_clouds_own_class(
    presets: dict[str, list[Manifest]], cloud: str
) -> None:
    _, storage_class, _ = CLOUDS[cloud]
    manifests = presets[cloud]
    redis = named(manifests, "StatefulSet", "demo-understudy-redis-control")
    claims = [one["spec"] for one in redis["spec"]["volumeClaimTemplates"]]
    claims += [one["spec"] for one in manifests if one["kind"] == "PersistentVolumeClaim"]
    assert [claim["storageClassName"] for claim in claims] == [storage_class] * 2


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_routers_get_a_load_balancer_inside_of_the_network(
    presets: dict[str, list[Manifest]], cloud: str
) -> None:
    _, _, prefix = CLOUDS[cloud]
    service = named(presets[cloud], "Service", "demo-understudy-router")
    assert service["spec"]["type"] == "LoadBalancer"
    annotations = service["metadata"]["annotations"]
    assert all(name.startswith(prefix) for name in annotations)
    assert {"internal", "true"} & {value.lower() for value in annotations.values()}


def test_the_gpu_preset_gives_gpus_to_triton_alone(presets: dict[str, list[Manifest]]) -> None:
    holders = {
        (workload["metadata"]["name"], container["name"]): container["resources"]["limits"]
        for workload in workloads(presets["generic-gpu"])
        for container in containers_of(pod_of(workload))
        if "nvidia.com/gpu" in container["resources"]["limits"]
    }
    assert holders.keys() == {("demo-understudy-llm-experts", "triton")}
    assert (
        "Nothing of this was ever run on a GPU" in (CHART / "values-generic-gpu.yaml").read_text()
    )


def test_on_eks_services_have_the_ports_of_their_pods(presets: dict[str, list[Manifest]]) -> None:
    manifests = presets["eks"]
    for service in (one for one in manifests if one["kind"] == "Service"):
        selector = service["spec"]["selector"].items()
        [pod] = [
            pod_of(one)
            for one in workloads(manifests)
            if selector <= one["spec"]["template"]["metadata"]["labels"].items()
        ]
        ports = {
            port["name"]: port["containerPort"]
            for container in containers_of(pod)
            for port in container["ports"]
        }
        for port in service["spec"]["ports"]:
            assert port["port"] == ports[port["targetPort"]]


def test_on_gke_names_are_resolved_by_the_metadata_server_too(
    presets: dict[str, list[Manifest]],
) -> None:
    policy = named(presets["gke"], "NetworkPolicy", "demo-understudy-router")
    blocks = [
        peer["ipBlock"]["cidr"]
        for rule in policy["spec"]["egress"]
        for peer in rule.get("to", [])
        if "ipBlock" in peer
    ]
    assert "169.254.169.254/32" in blocks
