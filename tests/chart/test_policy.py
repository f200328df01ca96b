"""Every pod satisfies the Pod Security Standard `restricted`, and the chart's stricter ones."""

from typing import Final

from tests.chart.manifests import Manifest, containers_of, pod_of, workloads

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
    for pod in map(pod_of, workloads(manifests)):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for volume in pod.get("volumes", []):
            assert volume.keys() - {"name"} <= VOLUMES_ALLOWED
        for container in containers_of(pod):
            assert all("hostPort" not in port for port in container["ports"])


def test_pods_run_as_an_ordinary_user_under_the_default_seccomp_profile(
    manifests: list[Manifest],
) -> None:
    for pod in map(pod_of, workloads(manifests)):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}


def test_containers_have_no_capability_and_a_read_only_root(manifests: list[Manifest]) -> None:
    for pod in map(pod_of, workloads(manifests)):
        for container in containers_of(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_pods_get_neither_an_api_token_nor_the_names_of_other_services(
    manifests: list[Manifest],
) -> None:
    for pod in map(pod_of, workloads(manifests)):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
    accounts = [one for one in manifests if one["kind"] == "ServiceAccount"]
    assert [account["automountServiceAccountToken"] for account in accounts] == [False]


def test_every_container_states_what_it_needs_and_a_memory_limit(
    manifests: list[Manifest],
) -> None:
    for pod in map(pod_of, workloads(manifests)):
        for container in containers_of(pod):
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert container["resources"]["limits"]["memory"]


def test_the_grace_period_is_longer_than_the_drain(manifests: list[Manifest]) -> None:
    for pod in map(pod_of, workloads(manifests)):
        for container in pod["containers"]:
            drains_s = [
                float(entry["value"])
                for entry in container.get("env", [])
                if entry["name"] == "UNDERSTUDY_SERVING_DRAIN_GRACE_S"
            ]
            sleep_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
            needed_s = sum(drains_s) + sleep_s.get("seconds", 0)
            assert pod["terminationGracePeriodSeconds"] > needed_s


def test_no_secret_stands_in_a_pod(manifests: list[Manifest]) -> None:
    for pod in map(pod_of, workloads(manifests)):
        for container in containers_of(pod):
            for entry in container.get("env", []):
                assert "@redis" not in entry.get("value", "")
                assert not any(word in entry["name"] for word in ("PASSWORD", "TOKEN_SECRET"))
