"""The chart itself, installed with Helm: the services it starts answer through its Services."""

import base64
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from deploy.cluster.layout import ROOT
from tests.cluster.kube import Kube
from understudy import Client
from understudy.workloads import find_workload
from understudy.workloads.snips.dataset import load_split

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

RELEASE = "understudy"
START_TIMEOUT_S = 900
CALL_TIMEOUT_S = 120.0
MAX_ROWS_ASKED = 60
WORKLOADS = {
    "deployment": {"controller", "distiller", "router"},
    "statefulset": {
        "llm-attention",
        "llm-experts",
        "redis-control",
        "redis-kv",
        "slm-attention",
    },
}


def helm(kube: Kube, *arguments: str) -> str:
    """Run Helm in the namespace and return what it printed."""
    result = subprocess.run(
        ["helm", "--namespace", kube.namespace, *arguments],
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S + 60,
        check=False,
    )
    assert result.returncode == 0, f"{result.stderr}\n{states(kube)}"
    return result.stdout


def states(kube: Kube) -> str:
    """Say how every container is, and what was told of pods that are not well."""
    pods = kube.run("get", "pods", "--output", "wide")
    events = kube.run(
        "get", "events", "--field-selector", "type=Warning", "--sort-by=.lastTimestamp"
    )
    return f"{pods}\n{events}"


@pytest.fixture(scope="module")
def release() -> Iterator[Kube]:
    """Install the chart into a namespace that enforces the restricted standard."""
    kube = Kube("platform")
    kube.create_namespace()
    chart = str(ROOT / "charts" / "understudy")
    timeout = f"{START_TIMEOUT_S}s"
    helm(kube, "install", RELEASE, chart, "--wait", "--timeout", timeout)
    yield kube
    helm(kube, "uninstall", RELEASE, "--wait", "--timeout", timeout)
    kube.delete_namespace()


@pytest.fixture(scope="module")
def api_key(release: Kube) -> str:
    data = release.get("secret", f"{RELEASE}-keys")["data"]
    return base64.b64decode(data["api-key"]).decode()


def address(kube: Kube, port: int) -> str:
    return f"{RELEASE}-router.{kube.namespace}.svc.cluster.local:{port}"


def test_every_workload_of_the_chart_runs_without_a_restart(release: Kube) -> None:
    for kind, names in WORKLOADS.items():
        found = {item["metadata"]["name"] for item in release.get(kind)["items"]}
        assert found == {f"{RELEASE}-{name}" for name in names}
    pods = release.get("pods")["items"]
    statuses = [one for pod in pods for one in pod["status"]["containerStatuses"]]
    assert all(status["ready"] and not status["restartCount"] for status in statuses)


def test_the_sdk_gets_answers_of_both_models_through_the_service(
    release: Kube, api_key: str
) -> None:
    tools = find_workload("snips").tools
    decisions = []
    with Client(address(release, 9090), api_key=api_key, timeout_s=CALL_TIMEOUT_S) as client:
        for row in load_split("dev")[:MAX_ROWS_ASKED]:
            messages = [{"role": "user", "content": row.text}]
            decisions.append(client.complete(messages=messages, tools=tools).decision)
            if len({decision.pool for decision in decisions}) == len(("slm", "llm")):
                break
    escalated = [decision for decision in decisions if decision.is_escalated]
    assert {decision.pool for decision in decisions} == {"slm", "llm"}
    assert [attempt.pool for attempt in escalated[0].attempts] == ["slm", "llm"]
    assert all(decision.is_resumable for decision in decisions), "the journal cannot be written"


def test_the_openai_client_gets_an_answer_through_the_service(release: Kube, api_key: str) -> None:
    url = f"http://{address(release, 8080)}/v1"
    messages: list[Any] = [{"role": "user", "content": "Why is the sky blue?"}]
    with OpenAI(base_url=url, api_key=api_key, max_retries=0, timeout=CALL_TIMEOUT_S) as client:
        answer = client.chat.completions.create(model="auto", messages=messages, max_tokens=8)
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8


def test_an_evicted_router_is_replaced(release: Kube, api_key: str) -> None:
    selector = "app.kubernetes.io/component=router"
    before = release.get("pods", selector=selector)["items"]
    release.run("delete", "pod", before[0]["metadata"]["name"])
    release.run(
        "rollout", "status", f"deployment/{RELEASE}-router", f"--timeout={START_TIMEOUT_S}s"
    )
    with Client(address(release, 9090), api_key=api_key, timeout_s=CALL_TIMEOUT_S) as client:
        answer = client.complete(messages=[{"role": "user", "content": "Hello."}], max_tokens=4)
    assert answer.usage.completion_tokens == 4


def test_the_rendered_release_is_what_runs(release: Kube) -> None:
    found = json.loads(helm(release, "list", "--output", "json"))
    assert [(one["name"], one["status"]) for one in found] == [(RELEASE, "deployed")]
