"""Reads NetworkPolicies as a cluster's network enforces them: who can open a connection to whom.

A pod that no policy of a direction selects is open in it; one that is selected is open to what the
rules of any selecting policy name. A connection needs the way out and the way in.
"""

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.chart.manifests import NAMESPACE, Manifest, containers_of, pod_of, workloads

Rule = Mapping[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod of the release or of somebody else, or with no namespace an address outside."""

    name: str
    namespace: str = NAMESPACE
    labels: Mapping[str, str] = field(default_factory=dict, compare=False)
    ports: Mapping[str, frozenset[int]] = field(default_factory=dict, compare=False)
    """TCP ports by the service that listens on them."""
    address: str = "10.0.0.1"


CALLER: Final = Pod("caller", "apps")
TRAINER: Final = Pod("trainer", labels={"understudy.dev/trainer": "true"})
PROMETHEUS: Final = Pod("prometheus", "monitoring")
STRANGER: Final = Pod("stranger", "elsewhere")
NEIGHBOUR: Final = Pod("neighbour", labels={"app.kubernetes.io/name": "understudy"})
INTERNET: Final = Pod("internet", "", address="203.0.113.9")
API_SERVER: Final = Pod("kubernetes", "", {}, {"kubernetes": frozenset({6443})}, "10.1.0.1")
COLLECTOR: Final = Pod("collector", "telemetry", {}, {"collector": frozenset({4317})})
ENGINE: Final = Pod("engine", "models", {}, {"engine": frozenset({8000})})
DNS: Final = Pod("dns", "kube-system")


def component(pod: Pod) -> str:
    """Return the service that a pod of the release is."""
    return pod.labels["app.kubernetes.io/component"]


def pods_of(manifests: Sequence[Manifest]) -> list[Pod]:
    """Return a pod of every workload, which is all but that of `helm test`."""
    found = []
    for workload in workloads(manifests):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        service = labels["app.kubernetes.io/component"]
        ports = {
            service if one["name"] == "redis" else one["name"]: frozenset(
                port["containerPort"] for port in one["ports"]
            )
            for one in containers_of(pod_of(workload))
            if "ports" in one
        }
        found.append(Pod(workload["metadata"]["name"], NAMESPACE, labels, ports))
    return found


@dataclass(frozen=True)
class Network:
    """The policies of one namespace."""

    policies: Sequence[Manifest]

    @classmethod
    def of(cls, manifests: Sequence[Manifest]) -> "Network":
        """Take the policies out of the manifests."""
        return cls([one for one in manifests if one["kind"] == "NetworkPolicy"])

    def is_open(self, source: Pod, target: Pod, port: int, protocol: str = "TCP") -> bool:
        """Say whether a connection can be opened."""
        way_out = self.lets_out(source, target, port, protocol)
        return way_out and self.lets_in(source, target, port, protocol)

    def lets_out(self, source: Pod, target: Pod, port: int, protocol: str = "TCP") -> bool:
        """Say whether the source's policies let the connection leave."""
        return self._allows("Egress", source, target, (port, protocol))

    def lets_in(self, source: Pod, target: Pod, port: int, protocol: str = "TCP") -> bool:
        """Say whether the target's policies let the connection in."""
        return self._allows("Ingress", target, source, (port, protocol))

    def _allows(self, direction: str, of: Pod, peer: Pod, port: tuple[int, str]) -> bool:
        selecting = [one["spec"] for one in self.policies if _governs(one, of, direction)]
        rules = (rule for spec in selecting for rule in spec.get(direction.lower()) or [])
        return not selecting or any(_admits(rule, direction, peer, port) for rule in rules)


def _governs(policy: Manifest, pod: Pod, direction: str) -> bool:
    spec = policy["spec"]
    is_here = pod.namespace == policy["metadata"].get("namespace", NAMESPACE)
    return (
        is_here and direction in spec["policyTypes"] and _selects(spec["podSelector"], pod.labels)
    )


def _admits(rule: Rule, direction: str, peer: Pod, port: tuple[int, str]) -> bool:
    assert rule.keys() <= {"ports", "from", "to"}
    ports = [(one["port"], one["protocol"]) for one in rule.get("ports", [])]
    peers = rule.get("from" if direction == "Ingress" else "to", [])
    return (not ports or port in ports) and (not peers or any(_is_peer(one, peer) for one in peers))


def _is_peer(rule: Rule, pod: Pod) -> bool:
    if "ipBlock" in rule:
        assert rule.keys() == {"ipBlock"}
        network = ipaddress.ip_network(rule["ipBlock"]["cidr"])
        return ipaddress.ip_address(pod.address) in network
    if not pod.namespace:
        return False
    labels = {"kubernetes.io/metadata.name": pod.namespace}
    has_namespace = (
        _selects(rule["namespaceSelector"], labels)
        if "namespaceSelector" in rule
        else pod.namespace == NAMESPACE
    )
    return has_namespace and _selects(rule.get("podSelector", {}), pod.labels)


def _selects(selector: Rule, labels: Mapping[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}, "expressions are not read here"
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def listeners(pods: Sequence[Pod]) -> Iterator[tuple[Pod, str, int]]:
    """Yield every port that listens, with the service behind it."""
    for pod in pods:
        for service, ports in pod.ports.items():
            for port in sorted(ports):
                yield pod, service, port
