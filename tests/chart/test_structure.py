"""The rendered objects hold together: required fields, selectors, references, ports and probes."""

import re
from typing import Final

import pytest
from kubernetes import client

from tests.chart.manifests import (
    Manifest,
    containers_of,
    environment_of,
    jobs,
    named,
    pod_of,
    service_containers,
    workloads,
)

MODELS: Final = {
    ("v1", "PersistentVolumeClaim"): client.V1PersistentVolumeClaim,
    ("v1", "ConfigMap"): client.V1ConfigMap,
    ("v1", "Pod"): client.V1Pod,
    ("v1", "Secret"): client.V1Secret,
    ("v1", "Service"): client.V1Service,
    ("v1", "ServiceAccount"): client.V1ServiceAccount,
    ("networking.k8s.io/v1", "NetworkPolicy"): client.V1NetworkPolicy,
    ("policy/v1", "PodDisruptionBudget"): client.V1PodDisruptionBudget,
    ("rbac.authorization.k8s.io/v1", "Role"): client.V1Role,
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): client.V1RoleBinding,
    ("apps/v1", "Deployment"): client.V1Deployment,
    ("autoscaling/v2", "HorizontalPodAutoscaler"): client.V2HorizontalPodAutoscaler,
    ("batch/v1", "Job"): client.V1Job,
    ("apps/v1", "StatefulSet"): client.V1StatefulSet,
}
CUSTOM: Final = (
    "monitoring.coreos.com/",
    "gateway.networking.k8s.io/",
    "keda.sh/",
    "networking.gke.io/",
)
TARGETS: Final = {"attention": "worker", "experts": "worker", "distiller": "distiller"}
"""Images by service; all others are in `router`."""
DNS_LABEL: Final = r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
PORT_NAME: Final = r"[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?"


def test_every_object_has_the_fields_and_types_of_the_kubernetes_api(
    manifests: list[Manifest],
) -> None:
    # The client's models are made from the API's OpenAPI description and forbid unknown fields. It
    # has no kinds of others: test_telemetry.py, test_edge.py and test_autoscaling.py read those.
    for manifest in manifests:
        if manifest["apiVersion"].startswith(CUSTOM):
            continue
        model = MODELS[manifest["apiVersion"], manifest["kind"]]
        assert model.model_validate(manifest).metadata.name == manifest["metadata"]["name"]


def test_object_names_are_unique_dns_labels(manifests: list[Manifest]) -> None:
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(DNS_LABEL, name) for _, name in names)


def test_selectors_match_the_pods_of_their_own_workload_only(manifests: list[Manifest]) -> None:
    pods = {
        workload["metadata"]["name"]: workload["spec"]["template"]["metadata"]["labels"].items()
        for workload in workloads(manifests)
    }
    for workload in workloads(manifests):
        selector = workload["spec"]["selector"]["matchLabels"].items()
        selected = [name for name, labels in pods.items() if selector <= labels]
        assert selected == [workload["metadata"]["name"]]
    for service in (one for one in manifests if one["kind"] == "Service"):
        selector = service["spec"]["selector"].items()
        assert len([name for name, labels in pods.items() if selector <= labels]) == 1, service


def test_services_lead_to_ports_that_pods_name(manifests: list[Manifest]) -> None:
    for service in (one for one in manifests if one["kind"] == "Service"):
        selector = service["spec"]["selector"].items()
        [workload] = [
            one
            for one in workloads(manifests)
            if selector <= one["spec"]["template"]["metadata"]["labels"].items()
        ]
        ports = [port for one in containers_of(pod_of(workload)) for port in one.get("ports", [])]
        names = [port["name"] for port in ports]
        assert len(names) == len(set(names))
        assert all(re.fullmatch(PORT_NAME, name) for name in names)
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= set(names)


def test_services_answer_grpc_probes_on_a_port_they_listen_on(manifests: list[Manifest]) -> None:
    for container in service_containers(manifests):
        environment = environment_of(container)
        listen = environment["UNDERSTUDY_SERVING_LISTEN"]
        # Probes have no certificate: with TLS a port that answers health only is for them.
        probed = environment["UNDERSTUDY_SERVING_HEALTH_LISTEN"] or listen
        port = int(probed.rpartition(":")[2])
        assert {port, int(listen.rpartition(":")[2])} <= {
            one["containerPort"] for one in container["ports"]
        }
        assert container["livenessProbe"]["grpc"]["port"] == port
        if container["name"] != "kvstore":
            assert container["startupProbe"]["grpc"]["port"] == port
            assert container["readinessProbe"]["grpc"] == {"port": port}


def test_liveness_does_not_ask_whether_a_service_is_ready(manifests: list[Manifest]) -> None:
    for container in service_containers(manifests):
        assert container["livenessProbe"]["grpc"]["service"] == "liveness"


def test_the_kvstore_is_a_native_sidecar_that_cannot_hold_up_its_worker(
    manifests: list[Manifest],
) -> None:
    attention = [
        one for one in workloads(manifests) if one["metadata"]["name"].endswith("attention")
    ]
    assert attention
    for workload in attention:
        sidecar = pod_of(workload)["initContainers"][-1]
        assert sidecar["name"] == "kvstore"
        assert sidecar["restartPolicy"] == "Always"
        assert not {"startupProbe", "readinessProbe"} & sidecar.keys()
        [worker] = pod_of(workload)["containers"]
        kvstore = environment_of(worker)["UNDERSTUDY_ATTENTION_KVSTORE"]
        assert (
            kvstore.rpartition(":")[2]
            == (environment_of(sidecar)["UNDERSTUDY_SERVING_LISTEN"].rpartition(":")[2])
        )


def test_mounts_name_volumes_of_their_pod(manifests: list[Manifest]) -> None:
    for workload in [*workloads(manifests), *jobs(manifests)]:
        pod = pod_of(workload)
        claimed = [claim["metadata"] for claim in workload["spec"].get("volumeClaimTemplates", [])]
        volumes = {volume["name"] for volume in [*pod.get("volumes", []), *claimed]}
        mounted = {mount["name"] for one in containers_of(pod) for mount in one["volumeMounts"]}
        assert mounted == volumes


def test_images_follow_the_values(helm_images: dict[str, set[str]]) -> None:
    images = {f"understudy-{target}:0.1.0" for target in ("router", "worker", "distiller")}
    assert helm_images["defaults"] == images | {"valkey/valkey:8.1-alpine"}
    digits = "0123456789abcdef" * 4
    assert helm_images["external-values"] == {
        f"registry.example.com/understudy-router@sha256:{digits}",
        f"registry.example.com/understudy-worker@sha256:{digits[::-1]}",
        "registry.example.com/understudy-distiller:1.2",
    }


def test_a_service_runs_in_the_image_that_has_it(manifests: list[Manifest]) -> None:
    for container in service_containers(manifests):
        repository = re.split(r"[:@]", container["image"])[0]
        assert repository.endswith(f"understudy-{TARGETS.get(container['name'], 'router')}")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("Deployment", "demo-understudy-router"),
        ("StatefulSet", "demo-understudy-slm-attention"),
        ("StatefulSet", "demo-understudy-llm-attention"),
        ("StatefulSet", "demo-understudy-llm-experts"),
        ("Deployment", "demo-understudy-controller"),
        ("Deployment", "demo-understudy-distiller"),
        ("StatefulSet", "demo-understudy-redis-kv"),
        ("StatefulSet", "demo-understudy-redis-control"),
    ],
)
def test_the_default_chart_runs_every_service(
    defaults: list[Manifest], kind: str, name: str
) -> None:
    workload = named(defaults, kind, name)
    assert workload["spec"]["replicas"] >= 1
    assert len(workloads(defaults)) == 8
