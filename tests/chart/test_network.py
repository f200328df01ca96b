"""The network is open exactly along the edges that deploy/telemetry/schema.yaml declares."""

from collections.abc import Callable
from typing import Final

import pytest

from deploy.telemetry.schema import load_schema
from tests.chart.manifests import CHART, Helm, Manifest
from tests.chart.network import (
    API_SERVER,
    CALLER,
    COLLECTOR,
    DNS,
    ENGINE,
    INTERNET,
    NEIGHBOUR,
    PROMETHEUS,
    STRANGER,
    TRAINER,
    Network,
    Pod,
    component,
    listeners,
    pods_of,
)

METRICS_PORTS: Final = frozenset({9464, 9465})
IN_ONE_POD: Final = {"kvstore": "attention"}

Edge = tuple[str, str]

TO_ENGINES: Final = ("router", "engine")

PORTS_OF: Final = {
    "collector": {4317},
    "kubernetes": {6443},
    "redis-control": {6379},
    "redis-kv": {6379},
}
PORTS: Final = {
    ("controller", "router"): {9464},
    ("controller", "attention"): {9000, 9464},
    ("controller", "experts"): {9000, 9464},
}
"""Ports of edges that lead elsewhere than to the target's gRPC port."""


@pytest.fixture(scope="module")
def declared() -> frozenset[Edge]:
    """The schema's edges between pods: what runs in one pod shares its ways.

    That to engines is for pools that are elsewhere, which `everything` has none of.
    """
    edges = {(IN_ONE_POD.get(one.source, one.source), one.target) for one in load_schema().edges}
    assert TO_ENGINES in edges
    return frozenset(edges - {("attention", "kvstore"), TO_ENGINES})


def _edges(pods: list[Pod], is_open: Callable[[Pod, Pod, int], bool]) -> frozenset[Edge]:
    """Return the ways between pods of the release, and from and to those around it."""
    targets = [*pods, API_SERVER, COLLECTOR, ENGINE]
    found = {
        (component(source), service)
        for source in pods
        for target, service, port in listeners(targets)
        if source != target and is_open(source, target, port)
    }
    for target, service, port in listeners(pods):
        if port in METRICS_PORTS:
            found |= {("prometheus", service)} if is_open(PROMETHEUS, target, port) else set()
        elif any(is_open(caller, target, port) for caller in (CALLER, TRAINER)):
            found.add(("caller", service))
    return frozenset(found)


def test_exactly_the_edges_of_the_schema_are_open(
    everything: list[Manifest], declared: frozenset[Edge]
) -> None:
    assert _edges(pods_of(everything), Network.of(everything).is_open) == declared


def test_a_pool_behind_engines_opens_the_edge_to_them_and_no_other(
    helm: Helm, declared: frozenset[Edge]
) -> None:
    manifests = helm.render([CHART / "values-external-engines.yaml"])
    network, pods = Network.of(manifests), pods_of(manifests)
    found = _edges(pods, network.is_open)
    assert TO_ENGINES in found
    assert found - {TO_ENGINES} <= declared
    assert not network.is_open(ENGINE, pods[0], 9000)


def test_the_ways_out_alone_are_those_of_the_schema(
    everything: list[Manifest], declared: frozenset[Edge]
) -> None:
    network, pods = Network.of(everything), pods_of(everything)
    components = {component(pod) for pod in pods}
    found = {edge for edge in _edges(pods, network.lets_out) if edge[0] in components}
    assert found == {edge for edge in declared if edge[0] in components}


def test_the_ways_in_alone_are_those_of_the_schema(
    everything: list[Manifest], declared: frozenset[Edge]
) -> None:
    network, pods = Network.of(everything), pods_of(everything)
    outside = {"kubernetes", "collector", "engine"}
    found = {edge for edge in _edges(pods, network.lets_in) if edge[1] not in outside}
    assert found == {edge for edge in declared if edge[1] not in outside}


def test_without_scaling_and_traces_their_edges_are_closed(
    defaults: list[Manifest], declared: frozenset[Edge]
) -> None:
    found = _edges(pods_of(defaults), Network.of(defaults).is_open)
    closed = {edge for edge in declared if edge[1] in ("collector", "kubernetes")} | {
        ("router", "controller"),
        ("controller", "router"),
        ("controller", "attention"),
    }
    assert found == declared - closed


def test_a_collector_of_the_chart_takes_spans_and_hands_them_on(
    watched: list[Manifest], declared: frozenset[Edge]
) -> None:
    network, pods = Network.of(watched), pods_of(watched)
    [collector] = [pod for pod in pods if component(pod) == "collector"]
    senders = {
        component(pod) for pod in pods if pod != collector and network.is_open(pod, collector, 4317)
    }
    assert senders == {source for source, target in declared if target == "collector"}
    assert not any(network.is_open(one, collector, 4317) for one in (CALLER, NEIGHBOUR, PROMETHEUS))
    assert [port for port in (80, 4317) if network.lets_out(collector, INTERNET, port)] == [4317]
    reached = [one for one in pods if one != collector and network.lets_out(collector, one, 9000)]
    assert not reached


def test_strangers_reach_the_routers_and_nothing_else(defaults: list[Manifest]) -> None:
    network = Network.of(defaults)
    for stranger in (STRANGER, NEIGHBOUR, INTERNET):
        reached = {
            (service, port)
            for target, service, port in listeners(pods_of(defaults))
            if network.is_open(stranger, target, port)
        }
        assert reached == {("router", 9000), ("router", 8080)}


def test_only_callers_that_are_named_reach_the_routers(everything: list[Manifest]) -> None:
    network = Network.of(everything)
    [router] = [pod for pod in pods_of(everything) if component(pod) == "router"]
    assert network.is_open(CALLER, router, 8080)
    assert not any(network.is_open(one, router, 8080) for one in (STRANGER, NEIGHBOUR, INTERNET))


def test_the_pod_of_helm_test_reaches_the_routers_and_nothing_else(
    everything: list[Manifest],
) -> None:
    [labels] = [one["metadata"]["labels"] for one in everything if one["kind"] == "Pod"]
    network, tester = Network.of(everything), Pod("test", labels=labels)
    reached = {
        (service, port)
        for target, service, port in listeners([*pods_of(everything), API_SERVER, COLLECTOR])
        if network.is_open(tester, target, port)
    }
    assert reached == {("router", 9000)}
    assert network.lets_out(tester, DNS, 53, "UDP")


def test_the_kvstore_is_reached_inside_of_its_pod_only(everything: list[Manifest]) -> None:
    network, pods = Network.of(everything), pods_of(everything)
    served = [(pod, port) for pod, service, port in listeners(pods) if service == "kvstore"]
    assert {port for _, port in served} == {9001, 9465}
    for source in (*pods, CALLER, PROMETHEUS, STRANGER):
        assert not any(
            network.is_open(source, pod, 9001) for pod, _ in served if pod.name != source.name
        )


def test_on_every_edge_only_the_ports_that_it_needs_are_open(
    everything: list[Manifest], declared: frozenset[Edge]
) -> None:
    network, pods = Network.of(everything), pods_of(everything)
    found: dict[Edge, set[int]] = {}
    for source in (*pods, PROMETHEUS, TRAINER, CALLER):
        who = component(source) if source in pods else source.name
        for target, service, port in listeners([*pods, API_SERVER, COLLECTOR]):
            if source != target and network.is_open(source, target, port):
                found.setdefault((who, service), set()).add(port)
    inside = {edge for edge in declared if edge[0] not in ("caller", "prometheus")}
    expected = {edge: PORTS.get(edge, PORTS_OF.get(edge[1], {9000})) for edge in inside}
    metrics = {
        ("prometheus", service): {port}
        for _, service, port in listeners(pods)
        if port in METRICS_PORTS
    }
    callers = {("caller", "router"): {8080, 9000}, ("trainer", "distiller"): {9000}}
    open_to_all = {(name, "collector"): {4317} for name in ("prometheus", "trainer", "caller")}
    foreign = {(name, "kubernetes"): {6443} for name in ("prometheus", "trainer", "caller")}
    assert found == expected | metrics | callers | open_to_all | foreign


def test_a_fused_pool_reaches_neither_experts_nor_the_controller(
    everything: list[Manifest],
) -> None:
    network, pods = Network.of(everything), pods_of(everything)
    [slm] = [pod for pod in pods if pod.name.endswith("slm-attention")]
    reached = {
        service
        for target, service, port in listeners(pods)
        if target != slm and network.is_open(slm, target, port)
    }
    assert reached == {"redis-kv"}
