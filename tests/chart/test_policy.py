"""Every pod satisfies the Pod Security Standard `restricted`, and the chart's stricter ones."""

import base64
import json
import re
from typing import Final

from services.router.settings import RouterSettings
from tests.chart.manifests import (
    Helm,
    Manifest,
    all_pods,
    containers_of,
    environment_of,
    named,
    pod_of,
    service_containers,
    workloads,
)
from understudy.serving import ServingSettings

VOLUMES_ALLOWED: Final = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def test_pods_share_nothing_with_their_host(manifests: list[Manifest]) -> None:
    for pod in all_pods(manifests):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for volume in pod.get("volumes", []):
            assert volume.keys() - {"name"} <= VOLUMES_ALLOWED
        for container in containers_of(pod):
            assert all("hostPort" not in port for port in container.get("ports", []))


def test_pods_run_as_an_ordinary_user_under_the_default_seccomp_profile(
    manifests: list[Manifest],
) -> None:
    for pod in all_pods(manifests):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}


def test_containers_have_no_capability_and_a_read_only_root(manifests: list[Manifest]) -> None:
    for pod in all_pods(manifests):
        for container in containers_of(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_no_account_mounts_its_token_by_itself_and_no_pod_gets_names_of_services(
    manifests: list[Manifest],
) -> None:
    accounts = [one for one in manifests if one["kind"] == "ServiceAccount"]
    assert accounts
    assert not any(account["automountServiceAccountToken"] for account in accounts)
    names = {account["metadata"]["name"] for account in accounts}
    for pod in all_pods(manifests):
        assert pod["serviceAccountName"] in names
        assert pod["enableServiceLinks"] is False


def test_without_scaling_no_pod_has_a_token_and_no_right_is_granted(
    defaults: list[Manifest],
) -> None:
    assert not any(pod["automountServiceAccountToken"] for pod in all_pods(defaults))
    assert not [one for one in defaults if "rbac" in one["apiVersion"]]


def test_with_scaling_the_controller_alone_has_a_token_and_its_account_alone_a_right(
    scaled: list[Manifest],
) -> None:
    holders = [
        workload["metadata"]["name"]
        for workload in workloads(scaled)
        if pod_of(workload)["automountServiceAccountToken"]
    ]
    assert holders == ["demo-understudy-controller"]
    accounts = {
        workload["metadata"]["name"]: pod_of(workload)["serviceAccountName"]
        for workload in workloads(scaled)
    }
    shared = accounts.pop("demo-understudy-controller")
    assert shared not in accounts.values()
    [binding] = [one for one in scaled if one["kind"] == "RoleBinding"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": shared, "namespace": "stage"}]
    [role] = [one for one in scaled if one["kind"] == "Role"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert not [one for one in scaled if one["kind"].startswith("Cluster")]


def test_every_container_states_what_it_needs_and_a_memory_limit(
    manifests: list[Manifest],
) -> None:
    for pod in all_pods(manifests):
        for container in containers_of(pod):
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert container["resources"]["limits"]["memory"]


def test_the_grace_period_is_longer_than_the_drain(manifests: list[Manifest]) -> None:
    for pod in all_pods(manifests):
        for container in pod["containers"]:
            hook = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
            needed_s = hook.get("seconds", 0) + drain_s(container)
            assert pod["terminationGracePeriodSeconds"] > needed_s


def test_every_service_states_its_drain_and_serves_on_before_it(manifests: list[Manifest]) -> None:
    sidecars = {id(one) for pod in all_pods(manifests) for one in pod.get("initContainers", [])}
    for container in service_containers(manifests):
        assert drain_s(container) > 0
        assert id(container) in sidecars or container["lifecycle"]["preStop"]["sleep"]["seconds"]


def test_a_router_drains_for_as_long_as_a_request_may_take(manifests: list[Manifest]) -> None:
    routers = [one for one in service_containers(manifests) if one["name"] == "router"]
    assert routers
    for router in routers:
        assert drain_s(router) >= RouterSettings.from_env(environment_of(router)).request_timeout_s


def test_a_router_drains_for_as_long_as_it_is_told(helm: Helm) -> None:
    told = helm.render(values={"router.settings.drainGraceS": 300, "serving.preStopS": 3})
    router = pod_of(named(told, "Deployment", "demo-understudy-router"))
    assert drain_s(router["containers"][0]) == 300
    assert router["terminationGracePeriodSeconds"] == 313
    part = helm.render(values={"router.settings.requestTimeoutS": 30.5})
    router = pod_of(named(part, "Deployment", "demo-understudy-router"))
    assert router["terminationGracePeriodSeconds"] == 5 + 31 + 10


def drain_s(container: Manifest) -> float:
    """Return how long a container's service drains; 0 for what is none of ours."""
    if "UNDERSTUDY_SERVING_DRAIN_GRACE_S" not in {one["name"] for one in container.get("env", [])}:
        return 0.0
    environment = environment_of(container)
    if container["name"] == "router":
        return RouterSettings.from_env(environment).drain_s
    return ServingSettings.from_env(environment).drain_grace_s


def test_no_secret_stands_outside_of_secrets(manifests: list[Manifest]) -> None:
    secrets = [one for one in manifests if one["kind"] == "Secret"]
    values = [base64.b64decode(text).decode() for one in secrets for text in one["data"].values()]
    passwords = [value for value in values if re.fullmatch(r"[0-9A-Za-z]{40,}", value)]
    assert bool(passwords) == bool(secrets)
    text = json.dumps([one for one in manifests if one["kind"] != "Secret"])
    assert not any(value in text for value in (*values, *passwords))


def test_no_pod_names_a_password(manifests: list[Manifest]) -> None:
    for pod in all_pods(manifests):
        for container in containers_of(pod):
            for entry in container.get("env", []):
                assert "@redis" not in entry.get("value", "")
                assert not any(word in entry["name"] for word in ("PASSWORD", "TOKEN_SECRET"))
