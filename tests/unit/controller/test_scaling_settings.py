"""Rules from the environment: what is understood, and what is refused by name."""

import json

import pytest

from services.controller.cluster import Workload, WorkloadKind
from services.controller.scaling.signals import Part
from services.controller.scaling_settings import ScalingSettings
from understudy.serving import SettingsError

RULES = {
    "max_gpus": 8,
    "max_cost_per_hour": None,
    "pools": [
        {
            "name": "llm",
            "attention": {"workload": "deployments/llm-a", "max_replicas": 4, "gpus": 1},
            "experts": {"workload": "statefulsets/llm-e", "min_replicas": 2, "max_replicas": 4},
            "tpot_s": 0.05,
            "idle_s": None,
        }
    ],
}


def read(rules, **more: str) -> ScalingSettings:
    text = rules if isinstance(rules, str) else json.dumps(rules)
    return ScalingSettings.from_env({"UNDERSTUDY_SCALING_RULES": text, **more})


def changed(**changes):
    return {**RULES, "pools": [{**RULES["pools"][0], **changes}]}


def test_rules_name_pools_parts_and_workloads():
    plan = read(RULES).plan()
    assert plan is not None
    assert plan.rules.max_gpus == 8
    assert plan.rules.max_cost_per_hour == float("inf")
    [pool] = plan.rules.pools
    assert (pool.name, pool.tpot_s, pool.idle_s) == ("llm", 0.05, None)
    assert pool.experts is not None
    assert pool.experts.min_replicas == 2
    assert plan.targets[0].workloads == {
        Part.ATTENTION: Workload(WorkloadKind.DEPLOYMENT, "llm-a"),
        Part.EXPERTS: Workload(WorkloadKind.STATEFUL_SET, "llm-e"),
    }


def test_without_rules_nothing_is_scaled():
    assert ScalingSettings.from_env({}).plan() is None


def test_the_identity_is_the_hosts_unless_set():
    assert ScalingSettings().own_identity()
    assert ScalingSettings(identity="me").own_identity() == "me"


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ("{", "no JSON"),
        ("[]", 'list "pools"'),
        ({"pools": [3]}, "must be an object with a name"),
        (changed(attention=None), "no attention workers"),
        (changed(attention={"workload": "pods/x"}), "write deployments/NAME"),
        (changed(attention={"workload": "deployments/X"}), "write deployments/NAME"),
        (changed(attention={}), "with a workload"),
        (changed(tpots=3), "unknown key 'tpots'"),
        (changed(tpot_s="fast"), "no number"),
        (changed(tpot_s=True), "no number"),
        (changed(attention={"workload": "deployments/a", "max_replicas": 1.5}), "whole number"),
        (changed(tpot_s=-1), "must be positive"),
        ({**RULES, "max_gpus": 0}, "budgets are 0"),
        ({**RULES, "pools": RULES["pools"] * 2}, "named twice"),
        ({**RULES, "pools": RULES["pools"] * 65}, "more than 64"),
    ],
)
def test_malformed_rules_are_refused_by_name(rules, sentence):
    with pytest.raises(SettingsError, match=sentence):
        read(rules)


@pytest.mark.parametrize(
    ("name", "value"),
    [("INTERVAL_S", "0"), ("READ_TIMEOUT_S", "99"), ("NAMESPACE", "Big One"), ("LEASE", "")],
)
def test_bad_settings_are_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=name):
        ScalingSettings.from_env({f"UNDERSTUDY_SCALING_{name}": value})
