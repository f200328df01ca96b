"""A release with weights that its Job fetches and certificates of an authority of its own.

The authority is replaced while callers are served.
"""

import json
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grpc
import pytest

from deploy.cluster.layout import ROOT
from tests.cluster.kube import Kube, wait_until
from tests.cluster.release import CHART, RELEASE, Release, address, helm
from tests.cluster.weights import FETCHED, MODEL
from understudy import Client
from understudy.api.attention.v1 import attention_pb2, attention_pb2_grpc
from understudy.errors import Unavailable, UnderstudyError
from understudy.rpc import WITHOUT_POLICY, from_rpc_error, open_sync_channel
from understudy.weights.contents import hash_file, sums_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

CALL_TIMEOUT_S = 120.0
TAKE_UP_S = 240
STEPS = ("trust", "switch", "finish")
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
TAKEN_UP = "The certificates are new."


def pods(kube: Kube) -> list[tuple[str, str]]:
    """Return pod and container of every service."""
    return [
        (pod["metadata"]["name"], container["name"])
        for pod in kube.get("pods")["items"]
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
        if container["command"][-1].startswith("services.")
    ]


def num_taken_up(kube: Kube, pod: str, container: str) -> int:
    """Return how many sets of certificates a service has taken up since it started."""
    return kube.run("logs", pod, "--container", container).count(TAKEN_UP)


def ask(release: Release, model: str = "llm") -> int:
    """Have a model answer, the LLM through all services; return the number of tokens."""
    key = release.api_key()
    with Client(address(release.kube, 9090), api_key=key, timeout_s=CALL_TIMEOUT_S) as client:
        answer = client.complete(messages=MESSAGES, model=model, max_tokens=8)
    return answer.usage.completion_tokens


def test_workers_start_from_what_the_job_fetched(secured: Release, state: Path) -> None:
    kube = secured.kube
    (job,) = kube.get("jobs")["items"]
    (fetching,) = kube.get("pods", selector="app.kubernetes.io/component=weights")["items"]
    assert job["status"]["succeeded"] == 1
    assert fetching["status"]["phase"] == "Succeeded"
    (worker,) = secured.pods("attention", FETCHED)
    (container,) = worker["spec"]["containers"]
    (path,) = [
        Path(one["value"])
        for one in container["env"]
        if one["name"] == "UNDERSTUDY_ATTENTION_MODEL"
    ]
    assert f"{path.name} is published" in kube.run("logs", fetching["metadata"]["name"])
    waited = worker["status"]["initContainerStatuses"][0]
    assert (waited["name"], waited["state"]["terminated"]["exitCode"]) == ("weights", 0)
    claim = kube.get("pvc", f"{RELEASE}-weights")["metadata"]["uid"]
    for name, digest in sums_of(ROOT / MODEL).files.items():
        assert hash_file(state / "claims" / claim / path.name / name).hexdigest() == digest
    assert ask(secured, model=FETCHED) == 8


def test_services_answer_over_tls_and_no_probe_restarts_them(secured: Release) -> None:
    assert ask(secured) == 8
    services = secured.kube.get("pods", selector="app.kubernetes.io/component!=weights")["items"]
    statuses = [one for pod in services for one in pod["status"]["containerStatuses"]]
    assert all(status["ready"] and not status["restartCount"] for status in statuses)


def test_a_worker_refuses_plaintext(secured: Release) -> None:
    worker = secured.kube.get("pod", f"{RELEASE}-llm-attention-0")["status"]["podIP"]
    with open_sync_channel(f"{worker}:9000", options=WITHOUT_POLICY) as channel:
        stub = attention_pb2_grpc.AttentionServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Info(attention_pb2.InfoRequest(), timeout=20)
    failure = from_rpc_error(caught.value)
    assert isinstance(failure, Unavailable)
    assert "it may want TLS" in failure.message


def test_an_authority_is_replaced_by_upgrades_while_callers_are_served(secured: Release) -> None:
    kube = secured.kube
    is_over, failures, answers = threading.Event(), list[str](), list[int]()

    def load() -> None:
        while not is_over.is_set():
            try:
                answers.append(ask(secured))
            except UnderstudyError as error:
                failures.append(error.message)

    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load)
        try:
            for step in STEPS:
                before = {one: num_taken_up(kube, *one) for one in pods(kube)}
                replace = f"tls.chart.replace={step}"
                helm(kube, "upgrade", secured.name, str(CHART), "--reuse-values", "--set", replace)
                wait_until(
                    partial(have_taken_up, kube, before), f"every service to {step}", TAKE_UP_S
                )
        finally:
            is_over.set()
        loading.result()
    assert failures == []
    assert set(answers) == {8}
    history = json.loads(helm(kube, "history", secured.name, "--output", "json"))
    assert len(history) == 1 + len(STEPS)


def have_taken_up(kube: Kube, before: dict[tuple[str, str], int]) -> bool:
    """Say whether every service has more recent certificates than before.

    Files are looked at when something needs them, so each service is scraped first.
    """
    for pod in kube.get("pods")["items"]:
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            for port in container.get("ports", []):
                if port["name"].endswith("metrics"):
                    url = f"http://{pod['status']['podIP']}:{port['containerPort']}/metrics"
                    with urllib.request.urlopen(url, timeout=20) as response:
                        response.read()
    return all(num_taken_up(kube, *one) > number for one, number in before.items())
