"""What watches the platform, as the chart installs it: scrapes, rules, dashboards, collector."""

import json
import re
from pathlib import Path
from typing import Final

import pytest
import yaml

import deploy.telemetry
from deploy.telemetry.schema import load_schema
from tests.chart.manifests import (
    Helm,
    Manifest,
    RenderError,
    environment_of,
    named,
    pod_of,
    service_containers,
    workloads,
)

SOURCE: Final = Path(deploy.telemetry.__file__).parent
NAME: Final = "demo-understudy"
ADDED_BY_PROMETHEUS: Final = {"namespace", "pod", "job", "instance"}
PRODUCT_KINDS: Final = {"PodMonitor", "PrometheusRule"}
EXPORT: Final = {"telemetry.collector.enabled": True, "telemetry.collector.exportEndpoint": "a:1"}


def _endpoints(manifests: list[Manifest]) -> dict[str, dict[str, Manifest]]:
    """Return the relabelings by port and target label."""
    monitor = named(manifests, "PodMonitor", NAME)
    return {
        endpoint["port"]: {one["targetLabel"]: one for one in endpoint["relabelings"]}
        for endpoint in monitor["spec"]["podMetricsEndpoints"]
    }


def test_nothing_watches_unless_it_is_asked_for(defaults: list[Manifest]) -> None:
    assert not PRODUCT_KINDS & {one["kind"] for one in defaults}
    assert not [one for one in defaults if one["kind"] == "ConfigMap"]
    assert not [one for one in defaults if "collector" in one["metadata"]["name"]]


def test_every_service_is_scraped_once(watched: list[Manifest]) -> None:
    ports = set(_endpoints(watched))
    for container in service_containers(watched):
        listen = environment_of(container)["UNDERSTUDY_SERVING_METRICS_LISTEN"]
        scraped = [port for port in container["ports"] if port["name"] in ports]
        assert [port["containerPort"] for port in scraped] == [int(listen.rpartition(":")[2])]


def test_the_scrape_selects_every_pod_of_the_release(watched: list[Manifest]) -> None:
    wanted = named(watched, "PodMonitor", NAME)["spec"]["selector"]["matchLabels"].items()
    for workload in workloads(watched):
        assert wanted <= workload["spec"]["template"]["metadata"]["labels"].items()


def test_targets_get_the_labels_that_expressions_rely_on(watched: list[Manifest]) -> None:
    expected = load_schema().target_labels.keys() - ADDED_BY_PROMETHEUS
    for labels in _endpoints(watched).values():
        assert labels.keys() == expected


def test_the_component_of_a_target_is_its_service(watched: list[Manifest]) -> None:
    endpoints = _endpoints(watched)
    for workload in workloads(watched):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        pod = pod_of(workload)
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            for port in container["ports"]:
                if port["name"] in endpoints:
                    rule = endpoints[port["name"]]["component"]
                    assert _relabelled(rule, labels) == container["name"]


def test_the_pool_of_a_target_is_that_of_its_pod(watched: list[Manifest]) -> None:
    for relabelings in _endpoints(watched).values():
        for workload in workloads(watched):
            labels = workload["spec"]["template"]["metadata"]["labels"]
            found = _relabelled(relabelings["pool"], labels)
            assert found == labels.get("understudy.dev/pool", "")


def _relabelled(rule: Manifest, labels: dict[str, str]) -> str:
    """Return what Prometheus sets: a fixed text, or a pod's label under its sanitised name."""
    if "replacement" in rule:
        return str(rule["replacement"])
    meta = {
        f"__meta_kubernetes_pod_label_{re.sub('[^a-zA-Z0-9_]', '_', name)}": value
        for name, value in labels.items()
    }
    [source] = rule["sourceLabels"]
    return meta.get(source, "")


def test_the_rules_are_those_of_the_repository_with_whole_runbook_addresses(
    watched: list[Manifest],
) -> None:
    expected = yaml.safe_load((SOURCE / "rules.yaml").read_text())["groups"]
    alerts = [rule for group in expected for rule in group["rules"] if "alert" in rule]
    assert alerts
    for rule in alerts:
        path = rule["annotations"]["runbook_url"]
        address = f"https://git.example.com/understudy/blob/main/{path}"
        rule["annotations"]["runbook_url"] = address
    assert named(watched, "PrometheusRule", NAME)["spec"]["groups"] == expected


def test_the_operators_objects_carry_the_labels_it_selects_by(watched: list[Manifest]) -> None:
    labels = named(watched, "PodMonitor", NAME)["metadata"]["labels"]
    assert labels["release"] == "prometheus"


def test_the_dashboards_are_those_of_the_repository(watched: list[Manifest]) -> None:
    found = {
        key.removeprefix(f"{NAME}-"): json.loads(text)
        for one in watched
        if one["metadata"]["labels"].get("grafana_dashboard") == "1"
        for key, text in one["data"].items()
    }
    files = (SOURCE / "dashboards").glob("*.json")
    assert found == {path.name: json.loads(path.read_text()) for path in files}


def test_the_collector_runs_the_configuration_of_the_repository(watched: list[Manifest]) -> None:
    [(name, text)] = named(watched, "ConfigMap", f"{NAME}-collector")["data"].items()
    source = (SOURCE / "collector.yaml").read_text()
    assert yaml.safe_load(text) == yaml.safe_load(source)
    [container] = pod_of(named(watched, "Deployment", f"{NAME}-collector"))["containers"]
    [mount] = container["volumeMounts"]
    assert container["command"][1] == f"--config={mount['mountPath']}/{name}"
    needed = set(re.findall(r"\$\{env:(\w+)\}", source))
    assert {entry["name"] for entry in container["env"]} == needed
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    config = yaml.safe_load(source)
    grpc = config["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    health = config["extensions"]["health_check"]["endpoint"]
    assert ports == {
        name: int(url.rpartition(":")[2]) for name, url in (("otlp", grpc), ("health", health))
    }
    assert container["livenessProbe"]["httpGet"]["port"] == "health"


def test_services_send_their_traces_to_the_collector_of_the_chart(watched: list[Manifest]) -> None:
    service = named(watched, "Service", f"{NAME}-collector")
    [port] = service["spec"]["ports"]
    for container in service_containers(watched):
        endpoint = environment_of(container)["UNDERSTUDY_SERVING_OTLP_ENDPOINT"]
        assert endpoint == f"http://{NAME}-collector:{port['port']}"


def test_one_collector_decides_so_that_it_sees_whole_traces(watched: list[Manifest]) -> None:
    assert named(watched, "Deployment", f"{NAME}-collector")["spec"]["replicas"] == 1


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"telemetry.collector.enabled": True}, "telemetry.collector.exportEndpoint is empty"),
        ({**EXPORT, "telemetry.jaeger.enabled": True}, "both say where kept traces go"),
        (
            {"telemetry.jaeger.enabled": True, "serving.otlpEndpoint": "http://b:4317"},
            "both say where traces go",
        ),
        ({**EXPORT, "serving.otlpEndpoint": "http://b:4317"}, "both say where traces go"),
    ],
)
def test_a_collector_that_leads_nowhere_is_refused(
    helm: Helm, values: dict[str, object], sentence: str
) -> None:
    with pytest.raises(RenderError, match=sentence):
        helm.render(values=values)
