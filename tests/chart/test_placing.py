"""Where pods run and when they may be taken away: spread, evictions, priorities, GPUs."""

from typing import Final

import pytest

from tests.chart.manifests import Helm, Manifest, named, pod_of, workloads

SINGLES: Final = {
    "collector",
    "jaeger",
    "prometheus",
    "controller",
    "distiller",
    "redis-kv",
    "redis-control",
}


def _component(workload: Manifest) -> str:
    component: str = workload["metadata"]["labels"]["app.kubernetes.io/component"]
    return component


def _labels(workload: Manifest) -> dict[str, str]:
    labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def test_who_may_have_replicas_is_evicted_one_at_a_time_and_the_others_whenever(
    manifests: list[Manifest],
) -> None:
    budgets = [one for one in manifests if one["kind"] == "PodDisruptionBudget"]
    for workload in workloads(manifests):
        of_it = [
            one["spec"]
            for one in budgets
            if one["spec"]["selector"]["matchLabels"].items() <= _labels(workload).items()
        ]
        assert len(of_it) == (_component(workload) not in SINGLES), workload["metadata"]["name"]
    assert all(one["spec"]["maxUnavailable"] == 1 for one in budgets)
    assert all(one["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" for one in budgets)
    assert all(len(one["spec"]) == 3 for one in budgets)


def test_pods_with_replicas_keep_away_from_their_own_kind(manifests: list[Manifest]) -> None:
    for workload in workloads(manifests):
        constraints = pod_of(workload).get("topologySpreadConstraints", [])
        assert bool(constraints) == (_component(workload) not in SINGLES)
        for constraint in constraints:
            selector = constraint["labelSelector"]["matchLabels"]
            assert selector == workload["spec"]["selector"]["matchLabels"]


def test_pods_are_spread_over_zones_and_nodes_unless_the_values_say_otherwise(
    defaults: list[Manifest], external: list[Manifest], helm: Helm
) -> None:
    def keys(manifests: list[Manifest], name: str) -> list[tuple[str, int, str]]:
        constraints = pod_of(named(manifests, "Deployment", name))["topologySpreadConstraints"]
        return [
            (one["topologyKey"], one["maxSkew"], one["whenUnsatisfiable"]) for one in constraints
        ]

    zone, node = "topology.kubernetes.io/zone", "kubernetes.io/hostname"
    found = keys(defaults, "demo-understudy-router")
    assert found == [(zone, 1, "ScheduleAnyway"), (node, 1, "ScheduleAnyway")]
    assert keys(external, "stage-router") == [(zone, 2, "DoNotSchedule")]
    without = helm.render(values={"topologySpread": []})
    assert not any("topologySpreadConstraints" in pod_of(one) for one in workloads(without))


def test_gpus_are_limits_under_the_name_that_nodes_offer_them(external: list[Manifest]) -> None:
    worker = pod_of(named(external, "StatefulSet", "stage-llm-attention"))
    assert worker["containers"][0]["resources"]["limits"]["example.com/gpu"] == "2"
    assert worker["containers"][0]["resources"]["limits"]["memory"]
    [sidecar] = worker["initContainers"]
    assert "example.com/gpu" not in sidecar["resources"]["limits"]
    small = pod_of(named(external, "StatefulSet", "stage-slm-attention"))
    assert "example.com/gpu" not in small["containers"][0]["resources"]["limits"]


def test_devices_that_are_claimed_are_not_asked_for_a_second_time(external: list[Manifest]) -> None:
    worker = pod_of(named(external, "StatefulSet", "stage-llm-experts"))
    assert worker["resourceClaims"] == [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}]
    resources = worker["containers"][0]["resources"]
    assert resources["claims"] == [{"name": "gpu"}]
    assert "example.com/gpu" not in resources["limits"]


@pytest.mark.parametrize("gpus", [0, 1])
def test_pools_do_not_lend_each_other_their_gpus(helm: Helm, gpus: int) -> None:
    llm = {"name": "llm", "modelName": "m", "model": "smollm2", "ffn": "fused"}
    slm = {**llm, "name": "slm", "attention": {"gpus": gpus}}
    manifests = helm.render(values={"pools": [slm, llm]})
    found = [
        pod_of(named(manifests, "StatefulSet", f"demo-understudy-{pool}-attention"))["containers"][
            0
        ]["resources"]["limits"].get("nvidia.com/gpu", "0")
        for pool in ("slm", "llm")
    ]
    assert found == [str(gpus), "0"]


def test_a_priority_class_is_named_where_it_is_set(external: list[Manifest]) -> None:
    classes = {_component(one): pod_of(one).get("priorityClassName") for one in workloads(external)}
    assert classes == {
        "attention": "serving",
        "experts": None,
        "router": None,
        "controller": None,
        "distiller": None,
    }
