"""How callers get in - TLS, routes of a Gateway - and what an evaluation looks at."""

import re
import subprocess
from pathlib import Path
from typing import Final

import pytest
import yaml

from deploy.telemetry.schema import load_schema
from tests.chart.manifests import (
    CHART,
    Helm,
    Manifest,
    RenderError,
    environment_of,
    named,
    pod_of,
    service_containers,
    workloads,
)
from tests.chart.network import Network, Pod, listeners, pods_of
from tests.telemetry.tools import tool
from understudy.api.router.v1 import router_pb2

NAME: Final = "demo-understudy"
INTERNET: Final = Pod("internet", "", address="203.0.113.9")


@pytest.fixture(scope="module")
def edge(helm: Helm) -> list[Manifest]:
    return helm.render([CHART / "ci" / "edge-values.yaml"])


def _route(manifests: list[Manifest], kind: str) -> Manifest:
    spec: Manifest = named(manifests, kind, f"{NAME}-router")["spec"]
    return spec


def test_routes_lead_to_the_ports_of_the_routers_service(edge: list[Manifest]) -> None:
    service = named(edge, "Service", f"{NAME}-router")
    ports = {one["name"]: one["port"] for one in service["spec"]["ports"]}
    hosts = {"http": "models.example.com", "grpc": "grpc.models.example.com"}
    for kind, port in (("HTTPRoute", "http"), ("GRPCRoute", "grpc")):
        spec = _route(edge, kind)
        [rule] = spec["rules"]
        assert rule["backendRefs"] == [{"name": f"{NAME}-router", "port": ports[port]}]
        assert spec["hostnames"] == [hosts[port]]
        [parent] = spec["parentRefs"]
        assert parent == {"name": "public", "namespace": "gateways", "sectionName": "https"}


def test_routes_match_what_routers_serve(edge: list[Manifest]) -> None:
    [service] = [one.full_name for one in router_pb2.DESCRIPTOR.services_by_name.values()]
    [grpc] = _route(edge, "GRPCRoute")["rules"]
    assert grpc["matches"] == [{"method": {"service": service}}]
    [http] = _route(edge, "HTTPRoute")["rules"]
    assert {one["path"]["value"] for one in http["matches"]} == {"/v1", "/health"}
    assert http["timeouts"] == {"request": "2m"}


def test_a_gateway_of_gke_asks_for_the_health_that_routers_tell(
    helm: Helm, edge: list[Manifest], defaults: list[Manifest]
) -> None:
    plain = helm.render(values={"router.gateway.gkeHealthCheck": True})
    for manifests, kind in ((edge, "HTTPS"), (plain, "HTTP")):
        spec = named(manifests, "HealthCheckPolicy", f"{NAME}-router")["spec"]
        service = named(manifests, "Service", spec["targetRef"]["name"])
        assert service["spec"]["type"] == "ClusterIP"
        assert spec["default"]["config"]["type"] == kind
        check = spec["default"]["config"][f"{kind.lower()}HealthCheck"]
        assert check["requestPath"] == "/health"
        [container] = pod_of(named(manifests, "Deployment", f"{NAME}-router"))["containers"]
        ports = {one["name"]: one["containerPort"] for one in container["ports"]}
        assert check["port"] == ports["http"], "gRPC's port is judged by it as well"
    assert not [one for one in defaults if one["kind"] == "HealthCheckPolicy"]


PUBLIC: Final = {"name": "public", "sectionName": "https"}


def _gateway(http: Manifest, grpc: Manifest) -> Manifest:
    return {"router.gateway.http": http, "router.gateway.grpc": grpc}


@pytest.mark.parametrize(
    ("hosts", "others", "parent"),
    [
        (["a.example"], ["a.example"], PUBLIC),
        (["a.example"], [], PUBLIC),
        ([], [], PUBLIC),
        (["a.example", "b.example"], ["*.example"], PUBLIC),
        (["*.b.example"], ["*.example"], PUBLIC),
        (["a.example"], ["a.example"], {"name": "public"}),
        (["a.example"], ["a.example"], {**PUBLIC, "namespace": "stage"}),
    ],
)
def test_routes_of_which_a_gateway_accepts_one_only_are_refused(
    helm: Helm, hosts: list[str], others: list[str], parent: Manifest
) -> None:
    http = {"parentRefs": [PUBLIC], "hostnames": hosts}
    with pytest.raises(RenderError, match="accepts only one"):
        helm.render(values=_gateway(http, {"parentRefs": [parent], "hostnames": others}))


@pytest.mark.parametrize(
    ("others", "parent"),
    [
        (["grpc.example"], PUBLIC),
        (["*.a.example"], PUBLIC),
        (["a.example"], {**PUBLIC, "sectionName": "grpc"}),
        ([], {**PUBLIC, "namespace": "other"}),
    ],
)
def test_routes_with_hosts_or_listeners_of_their_own_are_rendered(
    helm: Helm, others: list[str], parent: Manifest
) -> None:
    http = {"parentRefs": [PUBLIC], "hostnames": ["a.example"]}
    grpc = {"parentRefs": [parent], "hostnames": others}
    manifests = helm.render(values=_gateway(http, grpc))
    assert _route(manifests, "HTTPRoute")["parentRefs"] == [PUBLIC]
    assert _route(manifests, "GRPCRoute")["parentRefs"] == [parent]


def test_one_edge_alone_may_have_a_route(helm: Helm) -> None:
    manifests = helm.render(values={"router.gateway.grpc.parentRefs": [PUBLIC]})
    assert [one["kind"] for one in manifests if "gateway" in one["apiVersion"]] == ["GRPCRoute"]


@pytest.mark.parametrize(
    ("seconds", "duration"),
    [(90.5, "1m30s500ms"), (1, "1s"), (1.0005, "1s1ms"), (4e5, "111h6m40s")],
)
def test_the_longest_time_of_a_request_is_a_duration_of_the_gateway_api(
    helm: Helm, seconds: float, duration: str
) -> None:
    values = {
        "router.settings.requestTimeoutS": seconds,
        "router.gateway.http.parentRefs": [PUBLIC],
    }
    [rule] = _route(helm.render(values=values), "HTTPRoute")["rules"]
    assert rule["timeouts"] == {"request": duration}
    assert re.fullmatch(r"([0-9]{1,5}(h|m|s|ms)){1,4}", duration)


def test_without_a_gateway_there_are_no_routes(defaults: list[Manifest]) -> None:
    assert not [one for one in defaults if "gateway" in one["apiVersion"]]


def test_callers_certificate_is_mounted_by_routers_alone(edge: list[Manifest]) -> None:
    for workload in workloads(edge):
        volumes = [one["name"] for one in pod_of(workload)["volumes"]]
        assert ("caller-tls" in volumes) == (workload["metadata"]["name"] == f"{NAME}-router")
    router = pod_of(named(edge, "Deployment", f"{NAME}-router"))
    [volume] = [one["secret"] for one in router["volumes"] if one["name"] == "caller-tls"]
    assert volume["secretName"] == "callers-tls"
    assert {item["key"] for item in volume["items"]} == {"tls.crt", "tls.key"}
    [container] = router["containers"]
    folder = environment_of(container)["UNDERSTUDY_ROUTER_TLS_DIR"]
    assert folder in {one["mountPath"] for one in container["volumeMounts"]}


def test_probes_of_a_router_with_callers_tls_ask_a_port_without(edge: list[Manifest]) -> None:
    for container in service_containers(edge):
        listen = environment_of(container)["UNDERSTUDY_SERVING_HEALTH_LISTEN"]
        assert bool(listen) == (container["name"] == "router")
        assert environment_of(container)["UNDERSTUDY_SERVING_TLS_DIR"] == ""


def test_the_service_says_that_its_ports_speak_tls(
    edge: list[Manifest], defaults: list[Manifest]
) -> None:
    def protocols(manifests: list[Manifest]) -> dict[str, str]:
        ports = named(manifests, "Service", f"{NAME}-router")["spec"]["ports"]
        return {one["name"]: one["appProtocol"] for one in ports}

    assert protocols(edge) == {"grpc": "https", "http": "https"}
    assert protocols(defaults) == {"grpc": "kubernetes.io/h2c", "http": "http"}


def test_helm_test_trusts_the_authority_in_the_secret(edge: list[Manifest]) -> None:
    [pod] = [one["spec"] for one in edge if one["kind"] == "Pod"]
    [container] = pod["containers"]
    words = container["command"]
    [mount] = [one for one in container["volumeMounts"] if one["name"] == "caller-tls"]
    assert Path(words[words.index("--tls") + 1]).parent == Path(mount["mountPath"])
    [volume] = [one["secret"] for one in pod["volumes"] if one["name"] == "caller-tls"]
    assert [item["key"] for item in volume["items"]] == ["ca.crt"]


def test_services_send_their_traces_to_jaeger(edge: list[Manifest]) -> None:
    for container in service_containers(edge):
        endpoint = environment_of(container)["UNDERSTUDY_SERVING_OTLP_ENDPOINT"]
        assert endpoint == f"http://{NAME}-jaeger:4317"


def test_a_collector_hands_what_it_keeps_to_jaeger(helm: Helm) -> None:
    values = {"telemetry.collector.enabled": True, "telemetry.jaeger.enabled": True}
    manifests = helm.render(values=values)
    [collector] = pod_of(named(manifests, "Deployment", f"{NAME}-collector"))["containers"]
    environment = {one["name"]: one.get("value") for one in collector["env"]}
    assert environment["OTLP_EXPORT_ENDPOINT"] == f"{NAME}-jaeger:4317"
    assert _senders(manifests, "jaeger") == {"collector"}
    assert _senders(manifests, "collector") >= {"router", "attention"}


def _component(pod: Pod) -> str:
    return pod.labels["app.kubernetes.io/component"]


def _senders(manifests: list[Manifest], target: str) -> set[str]:
    network, pods = Network.of(manifests), pods_of(manifests)
    [receiver] = [pod for pod in pods if _component(pod) == target]
    return {_component(pod) for pod in pods if network.is_open(pod, receiver, 4317)} - {target}


def test_jaeger_takes_spans_of_services_and_reaches_nobody(edge: list[Manifest]) -> None:
    services = {"router", "attention", "experts", "controller", "distiller"}
    assert _senders(edge, "jaeger") == services
    network, pods = Network.of(edge), pods_of(edge)
    [jaeger] = [pod for pod in pods if _component(pod) == "jaeger"]
    reached = [one for one, _, port in listeners(pods) if network.lets_out(jaeger, one, port)]
    assert not [one for one in reached if one != jaeger]
    assert not any(network.lets_out(jaeger, INTERNET, port) for port in (80, 443))
    assert not any(network.lets_in(one, jaeger, 16686) for one in [*pods, INTERNET])


def test_prometheus_reaches_metrics_and_the_api_server_only(edge: list[Manifest]) -> None:
    network, pods = Network.of(edge), pods_of(edge)
    [prometheus] = [pod for pod in pods if _component(pod) == "prometheus"]
    reached = {
        (service, port)
        for pod, service, port in listeners(pods)
        if pod != prometheus and network.is_open(prometheus, pod, port)
    }
    services = ("router", "attention", "experts", "controller", "distiller")
    assert reached == {*((one, 9464) for one in services), ("kvstore", 9465)}
    ports = (80, 443, 6443, 9090)
    assert {port for port in ports if network.lets_out(prometheus, INTERNET, port)} == {443, 6443}
    assert not any(network.lets_in(one, prometheus, 9090) for one in [*pods, INTERNET])


def test_prometheus_may_read_pods_and_nothing_else_and_nobody_else_may(
    edge: list[Manifest],
) -> None:
    [role] = [one for one in edge if one["kind"] == "Role"]
    verbs = ["get", "list", "watch"]
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": verbs}]
    holders = [
        one["metadata"]["name"]
        for one in workloads(edge)
        if pod_of(one)["automountServiceAccountToken"]
    ]
    assert holders == [f"{NAME}-prometheus"]


def _configuration(manifests: list[Manifest]) -> dict[str, str]:
    data: dict[str, str] = named(manifests, "ConfigMap", f"{NAME}-prometheus")["data"]
    return data


def test_its_targets_get_the_labels_that_expressions_rely_on(edge: list[Manifest]) -> None:
    [job] = yaml.safe_load(_configuration(edge)["prometheus.yaml"])["scrape_configs"]
    labels = {one["target_label"] for one in job["relabel_configs"] if "target_label" in one}
    assert labels | {"job", "instance"} == load_schema().target_labels.keys()


def test_promtool_takes_its_configuration_and_rules(edge: list[Manifest], tmp_path: Path) -> None:
    promtool = tool("promtool")
    data = _configuration(edge)
    (tmp_path / "rules.yaml").write_text(data["rules.yaml"])
    config = yaml.safe_load(data["prometheus.yaml"].replace("/etc/prometheus", str(tmp_path)))
    [job] = config["scrape_configs"]
    # The pinned promtool is built without what finds targets in a cluster.
    [found] = job.pop("kubernetes_sd_configs")
    assert found == {"role": "pod", "namespaces": {"own_namespace": True}}
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    command = [str(promtool), "check", "config", "--syntax-only", str(tmp_path / "prometheus.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    rules = [str(promtool), "check", "rules", str(tmp_path / "rules.yaml")]
    done = subprocess.run(rules, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
