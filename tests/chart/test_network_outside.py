"""What pods reach beyond the release: names, the API server, and servers of somebody else."""

import pytest

from tests.chart.manifests import CHART, Helm, Manifest, jobs
from tests.chart.network import (
    API_SERVER,
    CALLER,
    DNS,
    INTERNET,
    STRANGER,
    Network,
    Pod,
    component,
    listeners,
    pods_of,
)


def test_names_are_resolved_by_those_who_have_names_to_resolve(defaults: list[Manifest]) -> None:
    network = Network.of(defaults)
    for pod in pods_of(defaults):
        asks = [network.lets_out(pod, DNS, 53, protocol) for protocol in ("UDP", "TCP")]
        assert asks == [not component(pod).startswith("redis")] * 2
        assert not network.lets_out(pod, DNS, 443)


def test_nobody_reaches_the_internet_but_the_controller_looking_for_the_api_server(
    everything: list[Manifest],
) -> None:
    network = Network.of(everything)
    for pod in pods_of(everything):
        found = {
            port for port in (22, 80, 443, 6379, 6443) if network.lets_out(pod, INTERNET, port)
        }
        assert found == ({443, 6443} if component(pod) == "controller" else set())


def test_the_api_server_can_be_narrowed_to_its_address(helm: Helm) -> None:
    values = {
        "scaling.enabled": True,
        "networkPolicy.apiServer": [{"ipBlock": {"cidr": "10.1.0.1/32"}}],
    }
    manifests = helm.render(values=values)
    network = Network.of(manifests)
    [controller] = [pod for pod in pods_of(manifests) if component(pod) == "controller"]
    assert network.lets_out(controller, API_SERVER, 6443)
    assert not network.lets_out(controller, INTERNET, 443)


def test_redis_and_a_collector_of_your_own_are_reached_on_their_ports_only(
    external: list[Manifest],
) -> None:
    network = Network.of(external)
    ports = (80, 443, 4317, 6379, 6380)
    found = {
        component(pod): {port for port in ports if network.lets_out(pod, INTERNET, port)}
        for pod in pods_of(external)
    }
    assert found == {
        "router": {4317, 6379},
        "attention": {4317, 6379},
        "experts": {4317},
        "controller": {4317},
        "distiller": {4317},
    }


def test_the_job_that_fetches_weights_alone_leaves_the_cluster_to_its_sources_only(
    helm: Helm,
) -> None:
    manifests = helm.render([CHART / "ci" / "fetched-values.yaml"])
    network, pods = Network.of(manifests), pods_of(manifests)
    [job] = jobs(manifests)
    fetcher = Pod("weights", labels=job["spec"]["template"]["metadata"]["labels"])
    source = Pod("store", "", address="198.51.100.7")
    ports = (22, 80, 443, 5000, 6379, 9000)
    assert {port for port in ports if network.lets_out(fetcher, source, port)} == {443, 5000, 9000}
    assert not any(network.lets_out(fetcher, INTERNET, port) for port in ports)
    assert network.lets_out(fetcher, DNS, 53, "UDP")
    assert not any(network.is_open(fetcher, pod, port) for pod, _, port in listeners(pods))
    assert not any(network.lets_in(pod, fetcher, 9000) for pod in [*pods, CALLER, STRANGER])
    assert not any(network.lets_out(pod, source, port) for pod in pods for port in ports)


@pytest.mark.parametrize(
    ("address", "ports"), [("triton:8011", {8011}), ("127.0.0.1:8001", set()), ("", set())]
)
def test_expert_workers_reach_a_triton_server_that_is_not_in_their_pod(
    helm: Helm, address: str, ports: set[int]
) -> None:
    manifests = helm.render(values={"experts.settings.triton": address})
    network = Network.of(manifests)
    found = {
        (component(pod), port)
        for pod in pods_of(manifests)
        for port in (8001, 8011)
        if network.lets_out(pod, INTERNET, port)
    }
    assert found == {("experts", port) for port in ports}


def test_policies_can_be_turned_off(helm: Helm) -> None:
    manifests = helm.render(values={"networkPolicy.enabled": False})
    assert not [one for one in manifests if one["kind"] == "NetworkPolicy"]


def test_every_pod_is_closed_before_anything_is_opened(manifests: list[Manifest]) -> None:
    [closed] = [
        one
        for one in manifests
        if one["kind"] == "NetworkPolicy" and not {"ingress", "egress"} & one["spec"].keys()
    ]
    assert closed["spec"]["policyTypes"] == ["Ingress", "Egress"]
    wanted = closed["spec"]["podSelector"]["matchLabels"].items()
    assert all(wanted <= pod.labels.items() for pod in pods_of(manifests))
