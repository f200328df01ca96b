"""Pools and routers that autoscalers of the cluster size: targets, series, names and refusals."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import jsonschema_rs
import pytest

from deploy.telemetry.rules import load_rules
from services.controller.scaling_settings import ScalingSettings
from tests.chart.manifests import (
    CHART,
    NAMESPACE,
    Helm,
    Manifest,
    RenderError,
    environment_of,
    named,
    pod_of,
    service_containers,
    workloads,
)

PREFIX: Final = "demo-understudy"
SEQUENCES: Final = "understudy:attention_sequences_in_flight:sum"
COMPUTING: Final = "understudy:experts_computing:sum_rate2m"
SCHEMA: Final = {
    "type": "object",
    "additionalProperties": False,
    "required": ["scaleTargetRef", "triggers"],
    "properties": {
        "scaleTargetRef": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {key: {"type": "string"} for key in ("apiVersion", "kind", "name")},
        },
        "minReplicaCount": {"type": "integer", "minimum": 0},
        "maxReplicaCount": {"type": "integer", "minimum": 1},
        "advanced": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"horizontalPodAutoscalerConfig": {"type": "object"}},
        },
        "triggers": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["type", "metadata"],
                "properties": {
                    "type": {"const": "prometheus"},
                    "metricType": {"enum": ["AverageValue", "Value"]},
                    "metadata": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["serverAddress", "query", "threshold"],
                        "properties": {
                            "serverAddress": {"type": "string", "pattern": "^https?://"},
                            "query": {"type": "string", "minLength": 1},
                            "threshold": {"type": "string", "pattern": "^[0-9]+([.][0-9]+)?$"},
                            "ignoreNullValues": {"enum": ["true", "false"]},
                            "authModes": {"type": "string", "minLength": 1},
                        },
                    },
                    "authenticationRef": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["name"],
                        "properties": {"name": {"type": "string"}},
                    },
                },
            },
        },
    },
}
"""What of KEDA's `ScaledObject` (keda.sh/v1alpha1) the chart may write."""


@pytest.fixture(scope="module")
def hpa(helm: Helm) -> list[Manifest]:
    return helm.render([CHART / "ci" / "hpa-values.yaml"])


@pytest.fixture(scope="module")
def keda(helm: Helm) -> list[Manifest]:
    return helm.render([CHART / "ci" / "keda-values.yaml"])


@pytest.fixture(params=["hpa", "keda"])
def autoscaled(request: pytest.FixtureRequest) -> list[Manifest]:
    """The chart with the LLM sized by either."""
    found: list[Manifest] = request.getfixturevalue(request.param)
    return found


def _objects(manifests: list[Manifest]) -> Iterator[Manifest]:
    for one in manifests:
        if one["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            yield one


def _environment(manifests: list[Manifest], service: str) -> dict[str, str]:
    found = [one for one in service_containers(manifests) if one["name"] == service]
    return environment_of(found[0])


def _external(autoscaler: Manifest) -> Mapping[str, Any]:
    [metric] = autoscaler["spec"]["metrics"]
    external: Mapping[str, Any] = metric["external"]
    return external


def test_an_autoscaler_stands_for_each_part_and_targets_a_workload_that_there_is(
    autoscaled: list[Manifest],
) -> None:
    made = {(one["kind"], one["metadata"]["name"]) for one in workloads(autoscaled)}
    targets = {
        (one["spec"]["scaleTargetRef"]["kind"], one["spec"]["scaleTargetRef"]["name"])
        for one in _objects(autoscaled)
    }
    assert targets <= made
    assert targets >= {
        ("StatefulSet", f"{PREFIX}-llm-attention"),
        ("StatefulSet", f"{PREFIX}-llm-experts"),
    }


def test_who_is_sized_has_no_replicas_and_everybody_else_keeps_theirs(
    autoscaled: list[Manifest],
) -> None:
    targets = {one["spec"]["scaleTargetRef"]["name"] for one in _objects(autoscaled)}
    without = {
        one["metadata"]["name"] for one in workloads(autoscaled) if "replicas" not in one["spec"]
    }
    assert without == targets


def test_callers_know_as_many_workers_by_name_as_there_may_be(autoscaled: list[Manifest]) -> None:
    pools = json.loads(_environment(autoscaled, "router")["UNDERSTUDY_ROUTER_POOLS"])
    [llm] = [pool for pool in pools if pool["name"] == "llm"]
    [experts] = json.loads(_environment(autoscaled, "controller")["UNDERSTUDY_CONTROLLER_POOLS"])
    for part, found, most in (
        ("attention", llm["workers"], 6),
        ("experts", experts["replicas"], 8),
    ):
        worker = f"{PREFIX}-llm-{part}"
        assert found == [f"{worker}-{one}.{worker}:9000" for one in range(most)]
        assert named(autoscaled, "StatefulSet", worker)["spec"]["serviceName"] == worker


def test_the_controller_sizes_nothing_then_and_has_no_right_to(autoscaled: list[Manifest]) -> None:
    assert ScalingSettings.from_env(_environment(autoscaled, "controller")).plan() is None
    assert _environment(autoscaled, "router")["UNDERSTUDY_ROUTER_CONTROLLERS"] == ""
    assert not [one for one in autoscaled if one["kind"] in ("Role", "RoleBinding")]
    controller = pod_of(named(autoscaled, "Deployment", f"{PREFIX}-controller"))
    assert not controller["automountServiceAccountToken"]


def test_pools_are_sized_by_series_that_the_shipped_rules_record(
    hpa: list[Manifest], keda: list[Manifest]
) -> None:
    recorded = {rule.name: rule for rule in load_rules() if not rule.is_alert}
    for series in (SEQUENCES, COMPUTING):
        assert recorded[series].expression.startswith("sum by (namespace, pool)")
    asked = {
        (one["metadata"]["name"], _external(one)["metric"]["name"])
        for one in _objects(hpa)
        if "pool" in json.dumps(one["spec"])
    }
    assert asked == {
        (f"{PREFIX}-slm-attention", SEQUENCES),
        (f"{PREFIX}-llm-attention", SEQUENCES),
        (f"{PREFIX}-llm-experts", COMPUTING),
    }
    for one in _objects(keda):
        [trigger] = one["spec"]["triggers"]
        series = SEQUENCES if one["metadata"]["name"].endswith("attention") else COMPUTING
        query = f'sum({series}{{namespace="{NAMESPACE}", pool="llm"}})'
        assert trigger["metadata"]["query"] == query


def test_an_hpa_has_the_bounds_target_and_patience_of_its_pool(hpa: list[Manifest]) -> None:
    specs = {one["metadata"]["name"]: one["spec"] for one in _objects(hpa)}
    attention, experts = specs[f"{PREFIX}-llm-attention"], specs[f"{PREFIX}-llm-experts"]
    assert (attention["minReplicas"], attention["maxReplicas"]) == (1, 6)
    assert (experts["minReplicas"], experts["maxReplicas"]) == (3, 8)
    targets = [
        one["metrics"][0]["external"]["target"]
        for one in (specs[f"{PREFIX}-slm-attention"], attention, experts)
    ]
    assert [one["averageValue"] for one in targets] == ["12000m", "2500m", "600m"]
    for one in (attention, experts):
        assert one["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 600
        assert one["behavior"]["scaleDown"]["policies"] == [
            {"type": "Pods", "value": 1, "periodSeconds": 60}
        ]
        assert one["metrics"][0]["external"]["metric"]["selector"]["matchLabels"] == {"pool": "llm"}


def test_a_scaled_object_is_what_keda_takes_and_holds_its_size_without_a_series(
    keda: list[Manifest],
) -> None:
    found = [one["spec"] for one in _objects(keda)]
    assert len(found) == 2
    validator = jsonschema_rs.validator_for(SCHEMA)
    for spec in found:
        validator.validate(spec)
        [trigger] = spec["triggers"]
        assert trigger["metadata"]["ignoreNullValues"] == "false"
        assert trigger["authenticationRef"] == {"name": "prometheus-token"}
        assert trigger["metadata"]["authModes"] == "bearer"
        assert spec["minReplicaCount"] >= 1, "only the controller wakes pools"
    assert [one["maxReplicaCount"] for one in found] == [6, 8]


def test_a_prometheus_that_asks_for_nothing_needs_no_authentication(helm: Helm) -> None:
    values = {"scaling.keda.authentication.name": ""}
    for one in _objects(helm.render([CHART / "ci" / "keda-values.yaml"], values)):
        [trigger] = one["spec"]["triggers"]
        assert "authenticationRef" not in trigger
        assert "authModes" not in trigger["metadata"]


def test_the_router_is_sized_by_its_own_cpu_whoever_sizes_the_pools(helm: Helm) -> None:
    for by in ("controller", "hpa"):
        values = {"scaling.by": by, "scaling.enabled": True, "router.autoscaling.enabled": True}
        manifests = helm.render(values=values)
        spec = named(manifests, "HorizontalPodAutoscaler", f"{PREFIX}-router")["spec"]
        router = named(manifests, "Deployment", f"{PREFIX}-router")
        assert spec["scaleTargetRef"]["name"] == router["metadata"]["name"]
        assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 6)
        [metric] = spec["metrics"]
        assert metric["containerResource"]["target"]["averageUtilization"] == 70
        [container] = pod_of(router)["containers"]
        assert metric["containerResource"]["container"] == container["name"]
        assert container["resources"]["requests"]["cpu"], "utilisation is of what is requested"
        assert "replicas" not in router["spec"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"scaling.dryRun": True}, "scaling.dryRun is the controller's"),
        ({"scaling.maxGpus": 4}, "scaling.maxGpus is the controller's"),
        ({"scaling.maxCostPerHour": 4}, "scaling.maxCostPerHour is the controller's"),
        ({"scaling.pools": [{"name": "llm", "idleS": 60}]}, "only the controller wakes pools"),
        (
            {"scaling.pools": [{"name": "llm", "attention": {"minReplicas": 5}}]},
            "minReplicas 5 above maxReplicas 4",
        ),
        ({"scaling.by": "keda"}, "name the Prometheus that it is to ask"),
        ({"scaling.by": "hap"}, "value must be one of"),
        (
            {"router.autoscaling": {"enabled": True, "minReplicas": 9}},
            "router.autoscaling has minReplicas 9 above maxReplicas 6",
        ),
        (
            {"router.autoscaling.enabled": True, "router.resources": {"requests": {"cpu": None}}},
            "set router.resources.requests.cpu",
        ),
    ],
)
def test_what_an_autoscaler_would_silently_not_do_is_refused(
    helm: Helm, values: dict[str, object], sentence: str
) -> None:
    with pytest.raises(RenderError, match=sentence):
        helm.render(values={"scaling.enabled": True, "scaling.by": "hpa", **values})


def test_autoscalers_change_nothing_while_they_are_off(
    helm: Helm, defaults: list[Manifest]
) -> None:
    off = helm.render(values={"scaling.by": "keda"})
    assert [one for one in off if one["kind"] != "Secret"] == [
        one for one in defaults if one["kind"] != "Secret"
    ]
