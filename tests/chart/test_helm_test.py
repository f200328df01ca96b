"""The pod of `helm test` gets one answer from the router's Service, or fails and says why.

Its rendered command runs here, against a router that listens on this machine.
"""

import os
import subprocess
import sys

import pytest

from tests.chart.manifests import Helm, Manifest, named, pod_of
from understudy.local.ports import free_port
from understudy.testing import FakeRouter

TIMEOUT_S = 60
KEY = "key"


def _pod(manifests: list[Manifest]) -> Manifest:
    [pod] = [one for one in manifests if one["kind"] == "Pod"]
    return pod


def _run(
    manifests: list[Manifest], address: str, *, patience_s: int = TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """Run the pod's command with the address of its router moved."""
    [container] = _pod(manifests)["spec"]["containers"]
    [variable] = container["env"]
    words = list(container["command"])
    words[words.index("--address") + 1] = address
    words[words.index("--timeout") + 1] = str(patience_s)
    return subprocess.run(
        [sys.executable, *words[1:]],
        env={**os.environ, variable["name"]: KEY},
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT_S,
        check=False,
    )


def test_an_answer_passes_and_is_shown(defaults: list[Manifest]) -> None:
    with FakeRouter(api_key=KEY) as router:
        done = _run(defaults, router.address)
    assert done.returncode == 0, done.stderr
    assert "answered by" in done.stdout


def test_a_refused_key_fails_with_the_reason(defaults: list[Manifest]) -> None:
    with FakeRouter(api_key="of another caller") as router:
        done = _run(defaults, router.address)
    assert done.returncode != 0
    assert "No tenant owns this API key." in done.stderr


def test_a_router_that_is_away_fails(defaults: list[Manifest]) -> None:
    done = _run(defaults, f"127.0.0.1:{free_port()}", patience_s=1)
    assert done.returncode != 0
    assert "Error:" in done.stderr


def test_the_pod_asks_the_service_of_the_router_with_the_key_of_the_chart(
    defaults: list[Manifest],
) -> None:
    [container] = _pod(defaults)["spec"]["containers"]
    address = container["command"][container["command"].index("--address") + 1]
    name, _, port = address.partition(":")
    service = named(defaults, "Service", name)
    assert int(port) in [one["port"] for one in service["spec"]["ports"] if one["name"] == "grpc"]
    [variable] = container["env"]
    key = variable["valueFrom"]["secretKeyRef"]
    assert key["key"] in named(defaults, "Secret", key["name"])["data"]
    assert not key["optional"]


def test_the_pod_runs_when_helm_is_asked_and_not_before(defaults: list[Manifest]) -> None:
    pod = _pod(defaults)
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert pod["spec"]["restartPolicy"] == "Never"
    router = pod_of(named(defaults, "Deployment", "demo-understudy-router"))
    assert pod["spec"]["containers"][0]["image"] == router["containers"][0]["image"]


def test_the_pod_can_be_sent_to_nodes_that_take_it(helm: Helm) -> None:
    toleration = {"key": "dedicated", "operator": "Exists"}
    values = {"helmTest.nodeSelector": {"pool": "small"}, "helmTest.tolerations": [toleration]}
    spec = _pod(helm.render(values=values))["spec"]
    assert spec["nodeSelector"] == {"pool": "small"}
    assert spec["tolerations"] == [toleration]


@pytest.mark.parametrize("secret", ["", "callers"])
def test_a_secret_of_your_own_may_keep_the_key_of_a_caller(helm: Helm, secret: str) -> None:
    [container] = _pod(helm.render(values={"router.keysSecret": secret}))["spec"]["containers"]
    key = container["env"][0]["valueFrom"]["secretKeyRef"]
    assert key["optional"] == bool(secret)
    assert key["name"] == (secret or "demo-understudy-keys")
