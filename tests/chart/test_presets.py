"""What the presets promise: the laptop's fits a laptop, a cloud's says what that cloud needs.

That each renders, is linted and keeps every rule of the chart is tested with all other values.
"""

from pathlib import Path
from typing import Any, Final

import pytest

from tests.chart.manifests import (
    CHART,
    PRESETS,
    Helm,
    Manifest,
    containers_of,
    environment_of,
    named,
    pod_of,
    service_containers,
    workloads,
)

CLOUDS: Final = {
    "gke": ("cloud.google.com/gke-nodepool", "premium-rwo", "networking.gke.io/"),
    "eks": ("eks.amazonaws.com/nodegroup", "gp3", "service.beta.kubernetes.io/aws-"),
    "aks": (
        "kubernetes.azure.com/agentpool",
        "managed-csi-premium",
        "service.beta.kubernetes.io/",
    ),
}
SHARED: Final = {"gke": "standard-rwx", "eks": "efs-sc", "aks": "azurefile-csi-premium"}
"""Classes of volumes that several nodes mount."""
GPUS: Final = {
    "gke": ("understudy-gpu", {"key": "nvidia.com/gpu", "operator": "Exists"}),
    "eks": ("understudy-gpu", {"key": "nvidia.com/gpu", "operator": "Exists"}),
    "aks": ("understgpu", {"key": "sku", "operator": "Equal", "value": "gpu"}),
}
"""Pools of nodes with GPUs, and the taint of each that expert workers tolerate."""
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
    anywhere = {"laptop", "generic-gpu", "external-engines"}
    assert presets.keys() == {*anywhere, *CLOUDS, *(f"{cloud}-gpu" for cloud in CLOUDS)}


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


def _preset(cloud: str) -> Path:
    return CHART / f"values-{cloud}.yaml"


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_volume_that_several_nodes_mount_has_a_class_that_can(helm: Helm, cloud: str) -> None:
    # The cloud's default class makes disks, and a claim of it would wait for ever.
    model = {"name": "m", "source": "s3://b/m/", "digest": f"sha256:{'1' * 64}", "maxGib": 1}
    values = {"weights.models": [model], "experts.settings.executor": "triton"}
    claims = {
        one["metadata"]["name"]: one["spec"]
        for one in helm.render([_preset(cloud)], values)
        if one["kind"] == "PersistentVolumeClaim"
    }
    shared = {
        name: spec["storageClassName"]
        for name, spec in claims.items()
        if spec["accessModes"] == ["ReadWriteMany"]
    }
    names = ("demo-understudy-weights", "demo-understudy-llm-packages")
    assert shared == dict.fromkeys(names, SHARED[cloud])
    assert SHARED[cloud] in _preset(cloud).read_text()


@pytest.mark.parametrize("cloud", CLOUDS)
def test_services_know_each_other_by_certificates_from_the_first_install_on(
    presets: dict[str, list[Manifest]], cloud: str
) -> None:
    for container in service_containers(presets[cloud]):
        assert environment_of(container)["UNDERSTUDY_SERVING_TLS_DIR"]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_with_the_clouds_gpu_values_expert_workers_alone_run_on_nodes_with_gpus(
    helm: Helm, cloud: str
) -> None:
    gpu = _preset(f"{cloud}-gpu")
    manifests = helm.render([_preset(cloud), gpu])
    label, _, _ = CLOUDS[cloud]
    pool, taint = GPUS[cloud]
    experts = pod_of(named(manifests, "StatefulSet", "demo-understudy-llm-experts"))
    assert experts["nodeSelector"][label] == pool
    assert experts["tolerations"] == [{**taint, "effect": "NoSchedule"}]
    others = [pod for pod in _workers(manifests) if pod != experts]
    assert {pod["nodeSelector"][label] for pod in others} == {"understudy"}
    holders = {
        (workload["metadata"]["name"], container["name"])
        for workload in workloads(manifests)
        for container in containers_of(pod_of(workload))
        if "nvidia.com/gpu" in container["resources"]["limits"]
    }
    assert holders == {("demo-understudy-llm-experts", "triton")}
    packages = named(manifests, "PersistentVolumeClaim", "demo-understudy-llm-packages")
    assert packages["spec"]["storageClassName"] == SHARED[cloud]
    assert "was ever run on a GPU" in gpu.read_text()


def test_on_aks_the_load_balancer_probes_what_answers_it(
    presets: dict[str, list[Manifest]],
) -> None:
    # It asks ports with the protocol `http` or `https` for `/`, which no router serves.
    service = named(presets["aks"], "Service", "demo-understudy-router")
    notes = service["metadata"]["annotations"]
    ports = {one["name"]: one for one in service["spec"]["ports"]}
    assert ports["http"]["appProtocol"] == "http"
    path = notes["service.beta.kubernetes.io/azure-load-balancer-health-probe-request-path"]
    assert path == "/health"
    grpc = f"service.beta.kubernetes.io/port_{ports['grpc']['port']}_health-probe_protocol"
    assert notes[grpc] == "tcp"


def test_on_eks_routers_serve_on_until_the_load_balancer_has_left_them(
    presets: dict[str, list[Manifest]],
) -> None:
    def rests(component: str) -> set[tuple[int, int]]:
        pods = [
            pod_of(one)
            for one in workloads(presets["eks"])
            if one["metadata"]["labels"]["app.kubernetes.io/component"] == component
        ]
        return {
            (
                pod["terminationGracePeriodSeconds"],
                pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"],
            )
            for pod in pods
        }

    longest_s = 120  # a router drains for its longest request
    assert rests("router") == {(180 + longest_s + 10, 180)}
    assert rests("attention") == {(5 + 20 + 10, 5)}


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
