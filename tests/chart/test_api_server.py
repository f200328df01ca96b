"""A real API server takes what the chart renders, and keeps what upgrades have to keep.

etcd and the API server run here as processes; no pod starts. Helm itself installs and upgrades.
"""

import base64
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.chart.manifests import CASES, CHART, Helm, Manifest
from tests.chart.rights import NOT_GRANTED, RIGHTS
from tests.integration.control_plane import ControlPlane, find_binaries

BINARIES: Final = find_binaries()
pytestmark = [
    pytest.mark.skipif(
        BINARIES is None,
        reason="no kube-apiserver, etcd, controller manager and scheduler in the cache or on PATH",
    ),
    pytest.mark.timeout(300),
]
RELEASE: Final = "demo"
RESTRICTED: Final = {
    f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")
}
WITHOUT_OPERATOR: Final = (
    "--set=telemetry.podMonitors.enabled=false",
    "--set=telemetry.rules.enabled=false",
    "--set=router.gateway.gkeHealthCheck=false",
    "--set-json=router.gateway.http.parentRefs=[]",
    "--set-json=router.gateway.grpc.parentRefs=[]",
)
"""Kinds that a cluster without operators and Gateways does not know."""
KNOWN: Final = tuple(case for case in CASES if case.stem != "keda-values")
"""Values that need no KEDA; test_autoscaling.py reads its objects."""


@dataclass(frozen=True)
class Site:
    """One namespace with the restricted standard, and Helm to install into it."""

    plane: ControlPlane
    helm: Helm
    namespace: str

    def install(self, *flags: str) -> str:
        """Install or upgrade the release; return what Helm said, warnings included."""
        command = (str(self.helm.binary), "upgrade", "--install", RELEASE, str(CHART))
        place = (
            f"--kubeconfig={self.plane.folder / 'kubeconfig'}",
            f"--namespace={self.namespace}",
        )
        done = subprocess.run(
            [*command, *place, *flags], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    def get(self, path: str) -> Manifest:
        """Read an object of the namespace; `apps/v1` and the like are part of the path."""
        group, _, rest = path.rpartition("//")
        root = f"/apis/{group}" if group else "/api/v1"
        found: Manifest = self.plane.call("GET", f"{root}/namespaces/{self.namespace}/{rest}")
        return found

    def may(self, account: str, group: str, resource: str, verb: str, name: str) -> bool:
        """Ask whether an account of the namespace may do something in it."""
        kind, _, part = resource.partition("/")
        asked = {"namespace": self.namespace, "group": group, "resource": kind, "verb": verb}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{self.namespace}:{account}",
                "groups": ["system:serviceaccounts", "system:authenticated"],
                "resourceAttributes": {**asked, "subresource": part, "name": name},
            },
        }
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        allowed: bool = self.plane.call("POST", path, review)["status"]["allowed"]
        return allowed


@pytest.fixture
def site(plane: ControlPlane, helm: Helm) -> Site:
    """Return a namespace of the test's own."""
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    metadata = {"name": namespace, "labels": RESTRICTED}
    namespaced = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    plane.call("POST", "/api/v1/namespaces", namespaced)
    return Site(plane, helm, namespace)


@pytest.mark.parametrize("case", [None, *KNOWN], ids=lambda case: case and case.stem)
def test_the_api_server_takes_every_object_without_a_warning(site: Site, case: Path | None) -> None:
    # It warns of unknown fields, and of pods that the restricted standard would refuse.
    flags = [f"--values={case}"] if case else []
    said = site.install(*flags, *WITHOUT_OPERATOR)
    assert "W1" not in said and "arning" not in said, said


def test_the_namespace_takes_the_pod_of_helm_test(site: Site, defaults: list[Manifest]) -> None:
    site.install()
    [pod] = [one for one in defaults if one["kind"] == "Pod"]
    path = f"/api/v1/namespaces/{site.namespace}/pods?dryRun=All&fieldValidation=Strict"
    made = site.plane.call("POST", path, pod)
    assert made["metadata"]["name"] == pod["metadata"]["name"]


@pytest.mark.parametrize("preset", ["ci/fetched-values.yaml", "values-generic-gpu.yaml"])
def test_an_upgrade_does_not_change_a_job_that_is_there(site: Site, preset: str) -> None:
    values = f"--values={CHART / preset}"

    def jobs() -> dict[str, str]:
        found = [one["metadata"] for one in site.get("batch/v1//jobs")["items"]]
        return {one["name"]: one["uid"] for one in found}

    site.install(values, *WITHOUT_OPERATOR)
    before = jobs()
    site.install(values, *WITHOUT_OPERATOR, "--set=serving.drainGraceS=77")
    assert jobs() == before
    site.install(values, *WITHOUT_OPERATOR, "--set=image.pullPolicy=Always")
    assert len(before) == 1 and not {*jobs()} <= {*before}


def test_keys_and_passwords_outlive_an_upgrade(site: Site) -> None:
    site.install()
    names = ("demo-understudy-keys", "demo-understudy-redis")
    before = {name: site.get(f"secrets/{name}")["data"] for name in names}
    site.install("--set=image.tag=next")
    assert {name: site.get(f"secrets/{name}")["data"] for name in names} == before


def test_the_controllers_account_may_do_what_its_role_says_and_no_other_account_may(
    site: Site,
) -> None:
    site.install(f"--values={CHART / 'ci' / 'scaled-values.yaml'}")
    for right in sorted(RIGHTS):
        assert site.may("demo-understudy-controller", *right), right
        assert not site.may("demo-understudy", *right), right
    for right in NOT_GRANTED:
        assert not site.may("demo-understudy-controller", *right), right


def _replicas(site: Site, path: str) -> int:
    replicas: int = site.get(f"apps/v1//{path}")["spec"]["replicas"]
    return replicas


def test_an_upgrade_leaves_the_size_alone_that_the_controller_decided(site: Site) -> None:
    scaled = f"--values={CHART / 'ci' / 'scaled-values.yaml'}"
    site.install(scaled)
    paths = (
        "statefulsets/demo-understudy-llm-attention",
        "deployments/demo-understudy-llm-experts",
    )
    for path in paths:
        url = f"/apis/apps/v1/namespaces/{site.namespace}/{path}/scale"
        size = {"spec": {"replicas": 5}}
        site.plane.call("PATCH", url, size, "application/merge-patch+json")
    site.install(scaled, "--set=image.tag=next")
    assert [_replicas(site, path) for path in paths] == [5, 5]


def test_an_upgrade_leaves_the_size_alone_that_an_autoscaler_decided(site: Site) -> None:
    sized = f"--values={CHART / 'ci' / 'hpa-values.yaml'}"
    site.install(sized)
    found = site.get("autoscaling/v2//horizontalpodautoscalers")["items"]
    targets = [one["spec"]["scaleTargetRef"] for one in found]
    paths = [f"{one['kind'].lower()}s/{one['name']}" for one in targets]
    assert len(paths) == 4
    for path in paths:
        url = f"/apis/apps/v1/namespaces/{site.namespace}/{path}/scale"
        size = {"spec": {"replicas": 5}}
        site.plane.call("PATCH", url, size, "application/merge-patch+json")
    site.install(sized, "--set=image.tag=next")
    assert [_replicas(site, path) for path in paths] == [5] * 4


def test_turning_scaling_on_starts_a_pool_over_with_one_attention_worker(site: Site) -> None:
    # As docs/operations.md warns: a field that leaves a manifest takes its default.
    site.install("--set=attention.replicas=3")
    path = "statefulsets/demo-understudy-llm-attention"
    assert _replicas(site, path) == 3
    site.install("--set=attention.replicas=3", "--set=scaling.enabled=true")
    assert _replicas(site, path) == 1


def _tls(site: Site, component: str) -> dict[str, str]:
    data: dict[str, str] = site.get(f"secrets/demo-understudy-tls-{component}")["data"]
    return data


def test_certificates_outlive_an_upgrade_and_are_renewed_when_they_are_old(site: Site) -> None:
    secured = "--set=tls.mode=chart"
    site.install(secured)
    before = {name: _tls(site, name) for name in ("authority", "router", "experts")}
    site.install(secured, "--set=image.tag=next")
    assert {name: _tls(site, name) for name in before} == before

    url = f"/api/v1/namespaces/{site.namespace}/secrets/demo-understudy-tls-router"
    old = {"metadata": {"annotations": {"understudy.dev/issued-at": "1700000000"}}}
    site.plane.call("PATCH", url, old, "application/merge-patch+json")
    site.install(secured)
    assert _tls(site, "router")["tls.crt"] != before["router"]["tls.crt"]
    assert _tls(site, "router")["ca.crt"] == before["router"]["ca.crt"]
    assert _tls(site, "experts") == before["experts"]


def test_certificates_of_a_day_are_renewed_after_two_thirds_of_it(site: Site) -> None:
    short = ("--set=tls.mode=chart", "--set=tls.chart.days=1")
    site.install(*short)
    before = _tls(site, "router")["tls.crt"]
    url = f"/api/v1/namespaces/{site.namespace}/secrets/demo-understudy-tls-router"
    for hours, is_renewed in ((15, False), (17, True)):
        issued_at = str(int(time.time()) - hours * 3600)
        aged = {"metadata": {"annotations": {"understudy.dev/issued-at": issued_at}}}
        site.plane.call("PATCH", url, aged, "application/merge-patch+json")
        site.install(*short)
        assert (_tls(site, "router")["tls.crt"] != before) == is_renewed


def test_an_authority_is_replaced_in_three_upgrades(site: Site) -> None:
    def upgraded(replace: str) -> dict[str, bytes]:
        site.install("--set=tls.mode=chart", f"--set=tls.chart.replace={replace}")
        return {key: base64.b64decode(value) for key, value in _tls(site, "router").items()}

    first = upgraded("")
    trusting, idle = upgraded("trust"), upgraded("")
    switched, again = upgraded("switch"), upgraded("")
    finished, after = upgraded("finish"), upgraded("finish")

    assert trusting["ca.crt"].startswith(first["ca.crt"])
    assert trusting["ca.crt"].count(b"BEGIN CERTIFICATE") == 2
    assert trusting["tls.crt"] == first["tls.crt"]
    assert idle == trusting
    assert switched["ca.crt"] == trusting["ca.crt"]
    assert switched["tls.crt"] != first["tls.crt"]
    assert again == switched
    assert finished["tls.crt"] == switched["tls.crt"]
    assert finished["ca.crt"] == switched["ca.crt"].removeprefix(first["ca.crt"])
    assert after == finished
