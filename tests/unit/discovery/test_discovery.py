"""Static peers, specs, and what EndpointSlices mean."""

import pytest

from understudy.discovery import Endpoint, open_discovery
from understudy.discovery.endpoint_slices import SliceDiscovery, endpoints_of
from understudy.errors import InvalidArgument


def peers(*addresses):
    return frozenset(Endpoint(address) for address in addresses)


async def test_static_peers_are_told_once():
    discovery = open_discovery("a:1, b:2, [::1]:3")

    assert [endpoints async for endpoints in discovery.watch()] == [peers("a:1", "b:2", "[::1]:3")]
    await discovery.aclose()


async def test_no_peers_is_an_answer():
    assert [endpoints async for endpoints in open_discovery("").watch()] == [frozenset()]


def test_kubernetes_spec_is_a_watch_of_slices():
    assert isinstance(open_discovery("k8s:prod/experts:grpc"), SliceDiscovery)


@pytest.mark.parametrize(
    "spec", ["k8s:prod", "k8s:prod/svc", "k8s:a/b:C", "host", "a:1,b", "::1:5"]
)
def test_malformed_spec_is_named(spec):
    with pytest.raises(InvalidArgument, match="not of the form"):
        open_discovery(spec)


def endpoint_slice(*endpoints, ports=(("grpc", 50051),), kind="IPv4"):
    return {
        "addressType": kind,
        "endpoints": list(endpoints),
        "ports": [{"name": name, "port": port} for name, port in ports],
    }


def test_only_ready_endpoints_count():
    one = endpoint_slice(
        {"addresses": ["10.0.0.1"], "conditions": {"ready": True}},
        {"addresses": ["10.0.0.2"], "conditions": {"ready": False}},
        {"addresses": ["10.0.0.3"], "conditions": {"ready": True, "terminating": True}},
        {"addresses": ["10.0.0.4"], "conditions": {"ready": None}},
        {"addresses": ["10.0.0.5"]},
        {"addresses": []},
    )

    assert endpoints_of([one], "grpc") == peers(
        "10.0.0.1:50051", "10.0.0.4:50051", "10.0.0.5:50051"
    )


def test_port_is_chosen_by_name():
    one = endpoint_slice({"addresses": ["10.0.0.1"]}, ports=(("http", 80), ("grpc", 90)))

    assert endpoints_of([one], "grpc") == peers("10.0.0.1:90")
    assert endpoints_of([one], "other") == frozenset()


def test_ipv6_addresses_are_bracketed():
    one = endpoint_slice({"addresses": ["fd00::1"]}, kind="IPv6")

    assert endpoints_of([one], "grpc") == peers("[fd00::1]:50051")


def test_empty_slices_are_empty():
    assert endpoints_of([{"endpoints": None, "ports": None}], "grpc") == frozenset()
