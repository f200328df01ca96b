"""The nodes: what they say they have, and the leases that say they live."""

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import aiohttp
import yaml

from deploy.cluster.agent.api import CONFLICT, MERGE, Api, ApiError, Json
from deploy.cluster.agent.status import now
from deploy.cluster.layout import KUBELET_PORT, node_address, pod_address

LEASE_S: Final = 40
RENEW_S: Final = 5.0
VERSION: Final = "v1.34.3"
_LEASES: Final = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_NUM_ADDRESSES: Final = 250


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node as nodes.yaml has it."""

    index: int
    name: str
    capacity: Mapping[str, str]
    labels: Mapping[str, str]
    taints: tuple[Json, ...]

    @property
    def address(self) -> str:
        """The node's own address."""
        return node_address(self.index)


def read_nodes(path: Path) -> list[NodeSpec]:
    """Read the nodes in their order, which decides their addresses."""
    return [
        NodeSpec(
            index,
            entry["name"],
            entry["capacity"],
            entry.get("labels", {}),
            tuple(entry.get("taints", [])),
        )
        for index, entry in enumerate(yaml.safe_load(path.read_text()))
    ]


class Addresses:
    """Pod addresses of a node; one that was given back rests as long as others are free."""

    def __init__(self, node: NodeSpec) -> None:
        self._order: Iterator[str] = itertools.cycle(
            pod_address(node.index, number) for number in range(_NUM_ADDRESSES)
        )
        self._taken: set[str] = set()

    def take(self) -> str:
        """Return an address that no pod has."""
        for address in itertools.islice(self._order, _NUM_ADDRESSES):
            if address not in self._taken:
                self._taken.add(address)
                return address
        raise RuntimeError(f"all {_NUM_ADDRESSES} addresses of the node are taken")

    def give_back(self, address: str) -> None:
        """Let another pod have the address."""
        self._taken.discard(address)


def node_object(node: NodeSpec) -> Json:
    """Return the node as it is registered."""
    labels = {
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "node.kubernetes.io/instance-type": "process",
        "topology.kubernetes.io/zone": f"zone-{node.index % 2}",
        **node.labels,
    }
    metadata = {"name": node.name, "labels": labels}
    return {"metadata": metadata, "spec": {"taints": list(node.taints)}}


def node_status(node: NodeSpec) -> Json:
    """Return what the node says of itself."""
    told = [
        ("Ready", "True", "AgentReady"),
        ("MemoryPressure", "False", "EnoughMemory"),
        ("DiskPressure", "False", "EnoughDisk"),
        ("PIDPressure", "False", "EnoughPids"),
    ]
    conditions = [
        {
            "type": kind,
            "status": value,
            "reason": reason,
            "lastHeartbeatTime": now(),
            "lastTransitionTime": now(),
        }
        for kind, value, reason in told
    ]
    return {
        "capacity": dict(node.capacity),
        "allocatable": dict(node.capacity),
        "addresses": [
            {"type": "InternalIP", "address": node.address},
            {"type": "Hostname", "address": node.name},
        ],
        "conditions": conditions,
        "daemonEndpoints": {"kubeletEndpoint": {"Port": KUBELET_PORT}},
        "nodeInfo": {
            "kubeletVersion": VERSION,
            "kubeProxyVersion": VERSION,
            "operatingSystem": "linux",
            "architecture": "amd64",
            "containerRuntimeVersion": "process://1",
            "kernelVersion": "",
            "osImage": "this machine",
            "machineID": node.name,
            "systemUUID": node.name,
            "bootID": node.name,
        },
    }


async def register(api: Api, node: NodeSpec) -> None:
    """Make the node known and ready; one that is known already keeps what was changed on it."""
    try:
        await api.request("POST", "/api/v1/nodes", node_object(node))
    except ApiError as error:
        if error.status != CONFLICT:
            raise
    await _tell_status(api, node)


async def _tell_status(api: Api, node: NodeSpec) -> None:
    path = f"/api/v1/nodes/{node.name}/status"
    await api.request("PATCH", path, {"status": node_status(node)}, MERGE)


def is_ready(node: Json) -> bool:
    """Tell whether the API server takes the node for ready."""
    told = node.get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in told)


async def renew_for_ever(api: Api, node: NodeSpec) -> None:
    """Renew the node's lease; the controllers take a node for dead whose lease runs out.

    One that they gave up, because this machine stood still for a while, says that it is back.
    """
    while True:
        spec = {
            "holderIdentity": node.name,
            "leaseDurationSeconds": LEASE_S,
            "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        lease: Json = {"metadata": {"name": node.name}, "spec": spec}
        # What fails is tried again in the next round, well before the lease runs out.
        with suppress(ApiError, aiohttp.ClientError, TimeoutError):
            await _put_lease(api, lease)
            if not is_ready(await api.request("GET", f"/api/v1/nodes/{node.name}")):
                await _tell_status(api, node)
        await asyncio.sleep(RENEW_S)


async def _put_lease(api: Api, lease: Json) -> None:
    try:
        await api.request("POST", _LEASES, lease)
    except ApiError as error:
        if error.status != CONFLICT:
            raise
        path = f"{_LEASES}/{lease['metadata']['name']}"
        await api.request("PATCH", path, {"spec": lease["spec"]}, MERGE)
