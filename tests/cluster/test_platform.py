"""The chart itself, installed with Helm: the services it starts answer through its Services."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from deploy.telemetry.schema import load_schema
from tests.cluster.release import (
    RELEASE,
    Release,
    Values,
    address,
    helm,
    merged,
    spans_file,
)
from tests.telemetry.edges import edges_of
from understudy import Client
from understudy.cli.waterfall import COMPLETE, await_trace
from understudy.client.results import Answer
from understudy.workloads import find_workload
from understudy.workloads.snips.dataset import load_split

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

CALL_TIMEOUT_S = 120.0
MAX_ROWS_ASKED = 60
NUM_ESCALATED = 2
"""One of them may find its prefix in the worker, and ask no kvstore."""
LENGTHS = range(60, 90)
"""Of utterances that are short, and still long enough to be looked up in the kvstore."""
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


@pytest.fixture(scope="module")
def asked(release: Release, api_key: str) -> dict[str, list[tuple[str, Answer]]]:
    """What the SDK asked, and got from each pool: until both answered and several escalated."""
    tools = find_workload("snips").tools
    found: dict[str, list[tuple[str, Answer]]] = {"slm": [], "llm": []}
    fitting = [row for row in load_split("dev") if len(row.text) in LENGTHS]
    with Client(address(release.kube, 9090), api_key=api_key, timeout_s=CALL_TIMEOUT_S) as client:
        for row in fitting[:MAX_ROWS_ASKED]:
            messages = [{"role": "user", "content": row.text}]
            answer = client.complete(messages=messages, tools=tools)
            found[answer.decision.pool].append((row.text, answer))
            if found["slm"] and len(found["llm"]) == NUM_ESCALATED:
                break
    return found


@pytest.fixture(scope="module")
def answers(asked: dict[str, list[tuple[str, Answer]]]) -> dict[str, list[Answer]]:
    """What the SDK got from each pool."""
    return {pool: [answer for _, answer in found] for pool, found in asked.items()}


def test_every_workload_of_the_chart_runs_without_a_restart(release: Release) -> None:
    for kind, expected in WORKLOADS.items():
        found = {item["metadata"]["name"] for item in release.kube.get(kind)["items"]}
        assert found == {f"{RELEASE}-{name}" for name in expected}
    pods = release.kube.get("pods", selector="app.kubernetes.io/component!=test")["items"]
    statuses = [one for pod in pods for one in pod["status"]["containerStatuses"]]
    assert all(status["ready"] and not status["restartCount"] for status in statuses)


def test_helm_test_passes(release: Release) -> None:
    said = release.test()
    assert "Succeeded" in said
    assert "answered by" in said


def test_the_sdk_gets_answers_of_both_models_through_the_service(
    answers: dict[str, list[Answer]],
) -> None:
    assert answers["slm"]
    assert len(answers["llm"]) == NUM_ESCALATED
    for answer in answers["llm"]:
        assert answer.decision.is_escalated
        assert [attempt.pool for attempt in answer.decision.attempts] == ["slm", "llm"]
    resumable = [one.decision.is_resumable for found in answers.values() for one in found]
    assert all(resumable), "the journal cannot be written"


@pytest.fixture(scope="module")
def openai_client(release: Release, api_key: str) -> Iterator[OpenAI]:
    url = f"http://{address(release.kube, 8080)}/v1"
    with OpenAI(base_url=url, api_key=api_key, max_retries=0, timeout=CALL_TIMEOUT_S) as client:
        yield client


@pytest.mark.parametrize("pool", ["slm", "llm"])
def test_the_openai_client_gets_what_the_sdk_got_streamed_and_whole(
    openai_client: OpenAI, asked: dict[str, list[tuple[str, Answer]]], pool: str
) -> None:
    """An answer that the SLM gives, and one that is escalated."""
    text, told = asked[pool][0]
    request: dict[str, Any] = {
        "model": "auto",
        "messages": [{"role": "user", "content": text}],
        "tools": [dict(tool) for tool in find_workload("snips").tools],
    }
    calls = [(call.name, call.arguments_json) for call in told.tool_calls]
    expected = (told.text, calls, told.usage.completion_tokens)

    raw = openai_client.chat.completions.with_raw_response.create(**request)
    assert said([raw.parse().choices[0].message], raw.parse().usage) == expected
    assert raw.headers["x-understudy-pool"] == pool
    assert raw.headers["x-understudy-reason"] == told.decision.reason

    *pieces, last = openai_client.chat.completions.create(
        **request, stream=True, stream_options={"include_usage": True}
    )
    assert said([piece.choices[0].delta for piece in pieces], last.usage) == expected
    assert last.model_extra["understudy"]["pool"] == pool
    assert last.model_extra["understudy"]["reason"] == told.decision.reason


def said(parts: list[Any], usage: Any) -> tuple[str, list[tuple[str, str]], int]:
    """Return text, tool calls and number of tokens of an answer's parts."""
    functions = [call.function for part in parts for call in part.tool_calls or ()]
    calls = [(function.name, function.arguments) for function in functions]
    return "".join(part.content or "" for part in parts), calls, usage.completion_tokens


def test_the_trace_of_an_escalation_contains_exactly_the_allowed_edges(
    state: Path, release: Release, answers: dict[str, list[Answer]]
) -> None:
    schema, path = load_schema(), spans_file(state, release.kube)
    trace_ids = [answer.decision.trace_id for answer in answers["llm"]]
    trace = await_trace(path, trace_ids, COMPLETE, CALL_TIMEOUT_S)
    assert trace is not None
    assert edges_of([trace], schema) == schema.traced_edges()


def test_every_endpoint_of_a_pod_monitor_is_scraped(release: Release, values: Values) -> None:
    watched = merged(values, {"telemetry": {"podMonitors": {"enabled": True}}})
    monitors = [one for one in release.rendered(watched) if one["kind"] == "PodMonitor"]
    scraped = set()
    for monitor in monitors:
        labels = monitor["spec"]["selector"]["matchLabels"]
        selector = ",".join(f"{name}={value}" for name, value in labels.items())
        pods = release.kube.get("pods", selector=selector)["items"]
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            targets = [target for pod in pods for target in ports_named(pod, endpoint["port"])]
            assert targets, f"no pod has a port {endpoint['port']}"
            scraped |= {(container, samples_at(place)) for container, place in targets}
    assert scraped == {
        (service, True)
        for service in ("router", "attention", "experts", "kvstore", "controller", "distiller")
    }


def ports_named(pod: Any, name: str) -> list[tuple[str, str]]:
    """Return containers of a running pod with a port of this name, and where it is."""
    spec, status = pod["spec"], pod["status"]
    if status["phase"] != "Running":
        return []
    return [
        (container["name"], f"{status['podIP']}:{port['containerPort']}")
        for container in (*spec.get("initContainers", []), *spec["containers"])
        for port in container.get("ports", [])
        if port.get("name") == name
    ]


def samples_at(place: str) -> bool:
    """Say whether a target answers with samples of ours, in Prometheus' text format."""
    with urllib.request.urlopen(f"http://{place}/metrics", timeout=CALL_TIMEOUT_S) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    return any(
        sample.name.startswith("understudy_") for family in families for sample in family.samples
    )


def test_the_rendered_release_is_what_runs(release: Release) -> None:
    found = json.loads(helm(release.kube, "list", "--output", "json"))
    assert [(one["name"], one["status"]) for one in found] == [(RELEASE, "deployed")]
