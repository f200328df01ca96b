"""Pools that the controller sizes: its rules, its rights, and how their workers are found."""

import json
import re
from dataclasses import fields
from typing import Any

import pytest
import yaml

from services.controller.scaling.rules import PartRules, PoolRules, ScalingRules
from services.controller.scaling_settings import Plan, ScalingSettings
from tests.chart.manifests import (
    CHART,
    Helm,
    Manifest,
    RenderError,
    environment_of,
    named,
    service_containers,
    workloads,
)
from tests.chart.rights import PREFIX, RIGHTS
from understudy.discovery import StaticDiscovery, open_discovery


def _environment(manifests: list[Manifest], service: str) -> dict[str, str]:
    found = [one for one in service_containers(manifests) if one["name"] == service]
    return environment_of(found[0])


def _plan(manifests: list[Manifest]) -> Plan | None:
    return ScalingSettings.from_env(_environment(manifests, "controller")).plan()


def test_without_scaling_the_controller_has_no_rules(defaults: list[Manifest]) -> None:
    assert _plan(defaults) is None


def test_the_controller_reads_the_rules_that_the_values_say(scaled: list[Manifest]) -> None:
    plan = _plan(scaled)
    assert plan is not None
    attention = PartRules(1, 6, gpus=1, cost_per_hour=2.5)
    experts = PartRules(3, 8, cost_per_hour=2.5)
    llm = PoolRules("llm", attention, experts, ttft_s=1.5, tpot_s=0.1, start_s=240, idle_s=900)
    assert plan.rules == ScalingRules((llm,), max_gpus=8, max_cost_per_hour=20.5)


def test_every_rule_of_a_pool_has_a_value_in_the_chart(helm: Helm) -> None:
    said = {
        "ttftS": 1.25,
        "tpotS": 0.25,
        "utilisation": 0.55,
        "kvOccupancy": 0.65,
        "expertsUtilisation": 0.45,
        "queueWaitS": 0.125,
        "ratioTolerance": 1.5,
        "startS": 90,
        "trend": 0.75,
        "backlogS": 45,
        "idleS": 600,
    }
    values = {"scaling.enabled": True, "scaling.pools": [{"name": "llm", **said}]}
    plan = _plan(helm.render(values=values))
    assert plan is not None
    [pool] = plan.rules.pools
    keys = {re.sub(r"([A-Z])", r"_\1", key).lower(): value for key, value in said.items()}
    assert keys.keys() == {one.name for one in fields(PoolRules)} - {"name", "attention", "experts"}
    assert {key: getattr(pool, key) for key in keys} == keys


def test_defaults_of_the_rules_are_those_of_the_controller(helm: Helm) -> None:
    plan = _plan(helm.render(values={"scaling.enabled": True}))
    assert plan is not None
    slm, llm = plan.rules.pools
    assert slm == PoolRules("slm", PartRules(1, 4))
    assert llm == PoolRules("llm", PartRules(1, 4), PartRules(2, 4))
    assert plan.rules == ScalingRules((slm, llm))
    assert not any(pool.idle_s for pool in plan.rules.pools), "no pool sleeps unless it is told to"


def test_what_an_entry_leaves_out_is_what_the_first_one_documents(helm: Helm) -> None:
    documented = yaml.safe_load((CHART / "values.yaml").read_text())["scaling"]["pools"][0]
    short = [{"name": name} for name in ("slm", "llm")]
    full = [{**documented, **one} for one in short]
    said: list[Any] = []
    for pools in (short, full):
        values = {"scaling.enabled": True, "scaling.pools": pools}
        rules = _environment(helm.render(values=values), "controller")["UNDERSTUDY_SCALING_RULES"]
        said.append(json.loads(rules))
    assert said[0] == said[1]


def test_rules_name_workloads_that_the_chart_makes(scaled: list[Manifest]) -> None:
    plan = _plan(scaled)
    assert plan is not None
    made = {(one["kind"], one["metadata"]["name"]) for one in workloads(scaled)}
    [target] = plan.targets
    named_ones = {(one.kind.object_kind, one.name) for one in target.workloads.values()}
    assert named_ones == {
        ("StatefulSet", f"{PREFIX}-llm-attention"),
        ("Deployment", f"{PREFIX}-llm-experts"),
    }
    assert named_ones <= made


def test_the_controller_may_do_exactly_what_it_does(scaled: list[Manifest]) -> None:
    role = named(scaled, "Role", f"{PREFIX}-controller")
    granted = {
        (group, resource, verb, name)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }
    assert granted == RIGHTS


def test_the_lease_that_the_role_names_is_the_controllers(scaled: list[Manifest]) -> None:
    lease = _environment(scaled, "controller")["UNDERSTUDY_SCALING_LEASE"]
    role = named(scaled, "Role", f"{PREFIX}-controller")
    names = [rule.get("resourceNames") for rule in role["rules"] if "leases" in rule["resources"]]
    assert names == [None, [lease]]


def test_the_controller_finds_the_routers_of_its_release_by_their_labels(
    scaled: list[Manifest],
) -> None:
    selector = _environment(scaled, "controller")["UNDERSTUDY_SCALING_ROUTERS"]
    wanted = dict(part.split("=") for part in selector.split(","))
    selected = [
        one["metadata"]["name"]
        for one in workloads(scaled)
        if wanted.items() <= one["spec"]["template"]["metadata"]["labels"].items()
    ]
    assert selected == [f"{PREFIX}-router"]
    assert "app.kubernetes.io/instance" in wanted


def test_who_is_sized_has_no_replicas_in_the_chart_and_the_others_keep_theirs(
    scaled: list[Manifest],
) -> None:
    without = {
        one["metadata"]["name"] for one in workloads(scaled) if "replicas" not in one["spec"]
    }
    assert without == {f"{PREFIX}-llm-attention", f"{PREFIX}-llm-experts"}


def test_a_dry_run_leaves_sizes_to_the_chart(helm: Helm) -> None:
    values = {"scaling.enabled": True, "scaling.dryRun": True}
    manifests = helm.render(values=values)
    assert all("replicas" in one["spec"] for one in workloads(manifests))
    assert ScalingSettings.from_env(_environment(manifests, "controller")).dry_run


def test_a_dry_run_only_tells(helm: Helm) -> None:
    dry = helm.render([CHART / "ci" / "scaled-values.yaml"], {"scaling.dryRun": True})
    plain = helm.render([CHART / "ci" / "scaled-values.yaml"], {"scaling.enabled": False})
    for workload in workloads(plain):
        name = workload["metadata"]["name"]
        if name != f"{PREFIX}-controller":
            assert named(dry, workload["kind"], name) == workload
    role = named(dry, "Role", f"{PREFIX}-controller")
    verbs = {
        (resource, verb)
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert verbs == {
        ("statefulsets/scale", "get"),
        ("pods", "list"),
        *(("leases", verb) for verb in ("create", "get", "update")),
    }
    plan = _plan(dry)
    assert plan is not None
    made = {(one["kind"], one["metadata"]["name"]) for one in workloads(dry)}
    [target] = plan.targets
    assert {(one.kind.object_kind, one.name) for one in target.workloads.values()} <= made
    routers = _environment(dry, "router")["UNDERSTUDY_ROUTER_POOLS"]
    assert routers == _environment(plain, "router")["UNDERSTUDY_ROUTER_POOLS"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"scaling.maxGpus": 3}, "smallest sizes of the scaled pools take 4 GPUs"),
        ({"scaling.maxCostPerHour": 9.5}, "smallest sizes of the scaled pools cost 10 an hour"),
        ({"scaling.maxGpus": 4, "scaling.maxCostPerHour": 10}, ""),
        ({"scaling.pools": [{"name": "llm", "idleS": 60}]}, "startS 180 to start, above"),
        ({"scaling.pools": [{"name": "llm", "idleS": 60, "startS": 120}]}, ""),
    ],
)
def test_what_the_controller_would_stop_at_is_refused_when_rendered(
    helm: Helm, values: dict[str, object], sentence: str
) -> None:
    part = {"minReplicas": 2, "costPerHour": 2.5}
    base: dict[str, object] = {
        "scaling.enabled": True,
        "attention.gpus": 1,
        "experts.gpus": 1,
        "scaling.pools": [{"name": "llm", "attention": part, "experts": part}],
    }
    if sentence:
        with pytest.raises(RenderError, match=sentence):
            helm.render(values={**base, **values})
    else:
        assert _plan(helm.render(values={**base, **values})) is not None


def test_routers_know_as_many_attention_workers_as_there_may_be(scaled: list[Manifest]) -> None:
    pools = json.loads(_environment(scaled, "router")["UNDERSTUDY_ROUTER_POOLS"])
    numbers = {pool["name"]: len(pool["workers"]) for pool in pools}
    assert numbers == {"slm": 1, "llm": 6}
    worker = f"{PREFIX}-llm-attention"
    assert pools[1]["workers"][5] == f"{worker}-5.{worker}:9000"
    assert named(scaled, "StatefulSet", worker)["spec"]["serviceName"] == worker


def test_expert_workers_of_a_deployment_are_found_by_their_service(scaled: list[Manifest]) -> None:
    [pool] = json.loads(_environment(scaled, "controller")["UNDERSTUDY_CONTROLLER_POOLS"])
    assert pool["replicas"] == f"k8s:stage/{PREFIX}-llm-experts:grpc"
    assert not isinstance(open_discovery(pool["replicas"]), StaticDiscovery)
    service = named(scaled, "Service", f"{PREFIX}-llm-experts")
    assert [port["name"] for port in service["spec"]["ports"]] == ["grpc"]


def test_pods_that_are_sized_name_the_ports_that_the_controller_reads(
    scaled: list[Manifest],
) -> None:
    for container in service_containers(scaled):
        if container["name"] in ("attention", "experts", "router"):
            assert {"grpc", "metrics"} <= {port["name"] for port in container["ports"]}


@pytest.mark.parametrize(
    ("pools", "sentence"),
    [
        ([{"name": "slm"}], 'scaling.pools names "slm", which is none of pools that run here'),
        ([{"name": "llm"}, {"name": "llm"}], 'scaling.pools names "llm" twice'),
        (
            [{"name": "llm", "attention": {"minReplicas": 5}}],
            'attention of "llm" has minReplicas 5 above maxReplicas 4',
        ),
    ],
)
def test_pools_that_cannot_be_sized_are_refused(
    helm: Helm, pools: list[dict[str, object]], sentence: str
) -> None:
    llm = {"name": "llm", "modelName": "m", "model": "smollm2", "ffn": "fused"}
    values = {"pools": [llm], "scaling.enabled": True, "scaling.pools": pools}
    with pytest.raises(RenderError, match=sentence):
        helm.render(values=values)


def test_routers_report_to_the_controller_only_while_it_sizes_pools(
    scaled: list[Manifest], defaults: list[Manifest]
) -> None:
    # While it does not, the network between them is closed and a report could not be acted on.
    variable = "UNDERSTUDY_ROUTER_CONTROLLERS"
    assert _environment(scaled, "router")[variable] == f"{PREFIX}-controller:9000"
    assert _environment(defaults, "router")[variable] == ""
