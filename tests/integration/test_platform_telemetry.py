"""A live platform watched as in production: scraped, traced, every expression run."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import grpc
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from deploy.telemetry.boards import DASHBOARDS
from deploy.telemetry.expressions import plain, read
from deploy.telemetry.rules import load_rules
from deploy.telemetry.schema import Schema, load_schema
from tests.contract.kvstore.parts import encoded, to_proto
from tests.integration.live_platform import CALL_TIMEOUT_S, Cast, LivePlatform
from tests.integration.processes import LOOPBACK, wait_until
from tests.telemetry.edges import edges_of
from tests.telemetry.server import Server, running
from tests.telemetry.tools import tool
from understudy import Client
from understudy.api.kvstore.v1 import kvstore_pb2, kvstore_pb2_grpc
from understudy.cli.waterfall import find_trace
from understudy.errors import NotFound
from understudy.local.state import PlatformState, ServiceState
from understudy.local.traces import Trace
from understudy.telemetry import names
from understudy.workloads import find_workload

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
ANSWERS = "sum(understudy_router_answers_total)"
MISSES = 'understudy_kvstore_chunks_total{outcome="miss"}'
UNCALIBRATED = 'understudy_router_answers_total{reason="no_calibrator"}'
SPANS_OF_AN_ESCALATION = {
    names.ROUTER_GENERATE,
    names.ROUTER_ATTEMPT,
    names.ATTENTION_SEQUENCE,
    names.ATTENTION_STEPS,
    names.EXPERTS_COMPUTE,
    names.KVSTORE_LOOKUP,
}


@pytest.fixture(scope="module")
def schema() -> Schema:
    return load_schema()


@pytest.fixture(scope="module")
def services(live: LivePlatform) -> list[ServiceState]:
    state = PlatformState.load(live.platform.run_dir)
    assert state is not None
    return [one for one in state.services if one.metrics_port]


@pytest.fixture(scope="module")
def traces(live: LivePlatform, cast: Cast) -> list[Trace]:
    """The traces of an accepted and of an escalated request, once all spans have come."""
    found: list[Trace] = []

    def is_whole() -> bool:
        found.clear()
        try:
            for asked in (cast.accepted, cast.escalated):
                trace_id = asked.answer.decision.trace_id
                found.append(find_trace(live.traces, trace_id, is_escalated=False))
        except NotFound:
            return False
        return {span.name for span in found[-1].spans} >= SPANS_OF_AN_ESCALATION

    wait_until(is_whole, "the spans of every service")
    return found


@pytest.fixture(scope="module")
def prometheus(
    live: LivePlatform,
    cast: Cast,
    services: list[ServiceState],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A Prometheus that saw requests answered, escalated and refused."""
    binary, folder = tool("prometheus"), tmp_path_factory.mktemp("prometheus")
    with running(binary, folder, services) as server:
        wait_until(lambda: server.value("sum(up)") == len(services), "every target to answer")
        before = server.value(ANSWERS)
        with Client(live.grpc_address, timeout_s=CALL_TIMEOUT_S) as client:
            for asked in (cast.accepted, cast.escalated):
                turn = {"role": "user", "content": asked.row.text}
                client.complete(messages=[turn], tools=find_workload("snips").tools)
            client.complete(prompt="Once", max_tokens=1)
            with pytest.raises(NotFound):
                client.complete(prompt="Hello?", model="gpt-9")
        read_chunks(live.service("kvstore").port)
        wait_until(lambda: server.value(ANSWERS) >= before + 3, "the answers to be scraped")
        wait_for_rate(server, UNCALIBRATED)
        wait_for_rate(server, MISSES)
        yield server


def wait_for_rate(server: Server, series: str) -> None:
    """Wait until a series was scraped twice, so that it has a rate."""
    count = f"count_over_time({series}[1m])"
    wait_until(lambda: server.value(count) > 1, f"{series} to be scraped twice")


def read_chunks(port: int) -> None:
    """Write a chunk to the kvstore, and read it and one that is missing, as a worker would."""
    hashes = [b"x" * 32, b"y" * 32]
    with grpc.insecure_channel(f"{LOOPBACK}:{port}") as channel:
        stub = kvstore_pb2_grpc.KvStoreServiceStub(channel)
        (data,) = encoded(hashes[:1])
        request = kvstore_pb2.PutRequest(chain=to_proto(hashes[:1]), data=data)
        stub.Put(iter([request]), timeout=CALL_TIMEOUT_S)
        found = list(
            stub.Get(kvstore_pb2.GetRequest(chain=to_proto(hashes)), timeout=CALL_TIMEOUT_S)
        )
    assert [one.hash for one in found] == hashes[:1]


def samples_of(service: ServiceState) -> list[tuple[str, Sample]]:
    """Return the type and the samples of what a service exposes."""
    url = f"http://{LOOPBACK}:{service.metrics_port}/metrics"
    request = urllib.request.Request(url, headers={"Accept": OPEN_METRICS})
    with urllib.request.urlopen(request, timeout=CALL_TIMEOUT_S) as response:
        families = text_string_to_metric_families(response.read().decode())
        return [(family.type, sample) for family in families for sample in family.samples]


def test_every_sample_of_a_live_platform_is_declared(
    services: list[ServiceState], cast: Cast, schema: Schema
) -> None:
    assert cast.escalated.answer.decision.is_escalated
    assert {one.name.partition("-")[0] for one in services} == {
        "router",
        "attention",
        "experts",
        "kvstore",
        "distiller",
        "controller",
    }
    for service in services:
        for kind, sample in samples_of(service):
            if sample.name.endswith("_created"):
                continue
            metric = schema.metric_of(sample.name)
            assert metric is not None, sample.name
            assert metric.type == kind
            labels = {name: value for name, value in sample.labels.items() if name != "le"}
            assert labels.keys() == metric.labels.keys()
            for name, value in labels.items():
                assert metric.labels[name].allows(value), f"{sample.name} {name}={value}"


def test_every_span_of_a_live_platform_is_declared(traces: list[Trace], schema: Schema) -> None:
    for trace in traces:
        for span in trace.spans:
            declared = schema.spans[span.name]
            assert span.service.partition("-")[0] == declared.service
            assert declared.required <= span.attributes.keys() <= declared.attributes
            for name, value in span.attributes.items():
                assert schema.attributes[name].fits(value), f"{span.name} {name} = {value!r}"


def test_a_trace_shows_exactly_the_allowed_edges(traces: list[Trace], schema: Schema) -> None:
    assert edges_of(traces, schema) == schema.traced_edges()


@pytest.mark.telemetry
def test_prometheus_runs_every_expression_without_a_warning(prometheus: Server) -> None:
    for board in DASHBOARDS:
        for panel in board.panels:
            for query in panel.queries:
                answer = prometheus.ask("query", query=plain(query.expression))
                assert answer["status"] == "success", (board.name, panel.title)
                remarks = answer.get("warnings", []), answer.get("infos", [])
                assert remarks == ([], []), (board.name, panel.title, remarks)


@pytest.mark.telemetry
def test_every_rule_is_evaluated_and_no_page_goes_out(prometheus: Server) -> None:
    rules = load_rules()

    def evaluated() -> list[dict[str, str]]:
        groups = prometheus.ask("rules")["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def all_are_known() -> bool:
        return all(rule["health"] != "unknown" for rule in evaluated())

    wait_until(all_are_known, "every rule to be evaluated")
    found = evaluated()
    assert sorted(rule["name"] for rule in found) == sorted(rule.name for rule in rules)
    assert {rule["health"] for rule in found} == {"ok"}, [rule.get("lastError") for rule in found]
    alerts = prometheus.ask("alerts")["data"]["alerts"]
    assert not [one for one in alerts if one["labels"]["severity"] == "page"]


@pytest.mark.telemetry
def test_panels_show_something_on_a_platform_that_serves(prometheus: Server) -> None:
    """What is empty needs trouble, or a cluster whose pools are scaled, to show anything."""
    empty = {
        (board.name, panel.title)
        for board in DASHBOARDS
        for panel in board.panels
        if not any(
            prometheus.ask("query", query=plain(query.expression))["data"]["result"]
            for query in panel.queries
        )
    }
    assert empty <= {
        ("request-path", "Calls by code"),
        ("request-path", "Refused on arrival"),
        ("request-path", "Preemptions"),
        ("request-path", "Engines"),
        ("request-path", "What engines did not give"),
        ("scaling", "Needed and decided"),
        ("scaling", "Held back"),
        ("scaling", "Changes"),
        ("scaling", "Budget"),
        ("scaling", "Ratio"),
    }


@pytest.mark.telemetry
def test_every_metric_that_is_read_was_scraped(prometheus: Server, schema: Schema) -> None:
    stored = set(prometheus.ask("label/__name__/values")["data"])
    expressions = [rule.expression for rule in load_rules()]
    expressions += [
        query.expression
        for board in DASHBOARDS
        for panel in board.panels
        for query in panel.queries
    ]
    needed = {one.name for expression in expressions for one in read(plain(expression)).selectors}
    missing = {name for name in needed - stored if schema.metric_of(name)}
    missing -= {name for name in missing if name.startswith("understudy_controller_scaling_")}
    assert missing <= {
        "understudy_attention_refusals_total",
        "understudy_attention_preemptions_total",
        "understudy_attention_kv_failures_total",
        # The platform on one machine talks in plaintext.
        "understudy_serving_certificate_remaining_seconds",
        "understudy_serving_certificate_refusals_total",
        # No pool of it is behind an engine of somebody else.
        "understudy_router_external_endpoints",
        "understudy_router_attempt_gaps_total",
    }


@pytest.mark.telemetry
def test_an_exemplar_leads_from_a_panel_to_a_trace(prometheus: Server, live: LivePlatform) -> None:
    query = "understudy_router_request_seconds_bucket"
    window = {"start": "0", "end": "9999999999"}
    series = prometheus.ask("query_exemplars", query=query, **window)["data"]
    trace_ids = {one["labels"]["trace_id"] for found in series for one in found["exemplars"]}
    assert trace_ids
    for trace_id in trace_ids:
        trace = find_trace(live.traces, trace_id, is_escalated=False)
        assert names.ROUTER_GENERATE in {span.name for span in trace.spans}
