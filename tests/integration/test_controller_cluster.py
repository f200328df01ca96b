"""The scaling side against a real API server, scheduler and controllers, with its own account.

The Role below is all that it needs; docs/decisions/0009-scaling.md lists the same.
"""

import asyncio
import json
import urllib.error
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from http import HTTPStatus

import grpc
import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration
from prometheus_client import CollectorRegistry

from services.controller.assembly import Scaling, open_scaling
from services.controller.clients.kubernetes import KubernetesCluster
from services.controller.scaling_settings import ScalingSettings
from tests.contract.controller.worker_pod import WorkerPod
from tests.integration.control_plane import COST, NODE, ControlPlane, find_binaries
from understudy.api.attention.v1 import attention_pb2_grpc
from understudy.errors import Unavailable
from understudy.local.ports import free_port

BINARIES = find_binaries()
pytestmark = pytest.mark.skipif(
    BINARIES is None,
    reason="no kube-apiserver, etcd, controller manager and scheduler in the cache or on PATH",
)
NAMESPACE = "understudy"
GPUS = 3
ROLE = [
    {"apiGroups": ["apps"], "resources": ["deployments/scale", "statefulsets/scale"],
     "verbs": ["get", "patch"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "patch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"],
     "verbs": ["get", "create", "update"]},
]  # fmt: skip
TAINT = {"key": "test", "value": "controller"}
"""Keeps pods of other tests off the node."""
CORE, APPS = f"/api/v1/namespaces/{NAMESPACE}", f"/apis/apps/v1/namespaces/{NAMESPACE}"
MERGE = "application/merge-patch+json"


def deployment(grpc_port: int, metrics_port: int) -> dict:
    labels = {"app": "llm"}
    worker = {
        "name": "worker",
        "image": "worker",
        "resources": {"limits": {"example.com/gpu": "1"}},
        "ports": [
            {"name": "grpc", "containerPort": grpc_port},
            {"name": "metrics", "containerPort": metrics_port},
        ],
    }
    return {
        "metadata": {"name": "llm"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [worker], "tolerations": [TAINT]},
            },
        },
    }


class Agent:
    """Plays the kubelet of the node on paper: what is bound runs, what is deleted goes.

    Every pod gets a loopback address of its own, at which a worker's faces can be read.
    """

    def __init__(self, plane: ControlPlane, stack: AsyncExitStack, ports: list[int]) -> None:
        self.plane = plane
        self.stack = stack
        self.grpc_port, self.metrics_port = ports
        self.workers: dict[str, WorkerPod] = {}
        self.num_started = 0
        self.num_ticks = 0

    def pods(self) -> list[dict]:
        return self.plane.call("GET", f"{CORE}/pods?labelSelector=app%3Dllm")["items"]

    async def step(self) -> None:
        """Look at all pods once."""
        for pod in await asyncio.to_thread(self.pods):
            name = pod["metadata"]["name"]
            if "deletionTimestamp" in pod["metadata"]:
                await asyncio.to_thread(self._remove, name)
                self.workers.pop(name, None)
            elif pod["spec"].get("nodeName") and name not in self.workers:
                await self._run(name)

    def _remove(self, name: str) -> None:
        try:
            self.plane.call("DELETE", f"{CORE}/pods/{name}", {"gracePeriodSeconds": 0})
        except urllib.error.HTTPError as error:
            if error.code != HTTPStatus.NOT_FOUND:  # else somebody else removed it meanwhile
                raise

    async def until(self, check, what: str):
        """Step until a check over the pods holds."""
        for _ in range(600):
            await self.step()
            if check(await asyncio.to_thread(self.pods)):
                return
            await asyncio.sleep(0.05)
        pytest.fail(f"Waited for {what}.")

    async def _run(self, name: str) -> None:
        self.num_started += 1  # the address of one that is gone is not used again
        worker = WorkerPod(f"127.0.0.{9 + self.num_started}")
        await self._listen(worker)
        self.workers[name] = worker
        status = {
            "phase": "Running",
            "podIP": worker.ip,
            "podIPs": [{"ip": worker.ip}],
            "conditions": [
                {"type": "Ready", "status": "True"},
                {"type": "PodScheduled", "status": "True"},
            ],
        }
        path = f"{CORE}/pods/{name}/status"
        await asyncio.to_thread(self.plane.call, "PATCH", path, {"status": status}, MERGE)

    async def _listen(self, worker: WorkerPod) -> None:
        app = web.Application()
        app.router.add_get("/metrics", worker.expose)
        runner = web.AppRunner(app, shutdown_timeout=1.0)
        await runner.setup()
        self.stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, worker.ip, self.metrics_port).start()
        server = grpc.aio.server()
        attention_pb2_grpc.add_AttentionServiceServicer_to_server(worker, server)
        server.add_insecure_port(f"{worker.ip}:{self.grpc_port}")
        await server.start()
        self.stack.push_async_callback(server.stop, None)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as found:
        yield found


@pytest.fixture
async def agent(plane, stack) -> Agent:
    ports = [free_port(), free_port()]
    objects = {
        "/api/v1/namespaces": {"metadata": {"name": NAMESPACE}},
        "/api/v1/nodes": {"metadata": {"name": NODE}},
        f"{CORE}/serviceaccounts": {"metadata": {"name": "controller"}},
        f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/roles": {
            "metadata": {"name": "controller"}, "rules": ROLE,
        },
        f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/rolebindings": {
            "metadata": {"name": "controller"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role",
                        "name": "controller"},
            "subjects": [{"kind": "ServiceAccount", "name": "controller", "namespace": NAMESPACE}],
        },
        f"{APPS}/deployments": deployment(*ports),
    }  # fmt: skip
    for path, body in objects.items():
        plane.call("POST", path, body)
    amounts = {"cpu": "64", "memory": "64Gi", "pods": "99", "example.com/gpu": str(GPUS)}
    status = {
        "capacity": amounts,
        "allocatable": amounts,
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    plane.call("PATCH", f"/api/v1/nodes/{NODE}/status", {"status": status}, MERGE)
    taints = {"spec": {"taints": [{**TAINT, "effect": "NoSchedule"}]}}
    plane.call("PATCH", f"/api/v1/nodes/{NODE}", taints, MERGE)
    return Agent(plane, stack, ports)


@pytest.fixture
async def scaling(plane, agent, stack) -> Scaling:
    path = f"{CORE}/serviceaccounts/controller/token"
    token = plane.call("POST", path, {"spec": {"expirationSeconds": 3600}})["status"]["token"]
    configuration = Configuration(host=plane.url)
    configuration.ssl_ca_cert = str(plane.authority)
    configuration.api_key = {"authorization": f"Bearer {token}"}
    rules = {
        "down_window_s": 0, "down_cool_down_s": 0, "up_cool_down_s": 0,
        "pools": [{
            "name": "llm", "tpot_s": 0.1,
            "attention": {"workload": "deployments/llm", "max_replicas": 8, "gpus": 1},
        }],
    }  # fmt: skip
    settings = ScalingSettings(
        rules=json.dumps(rules), namespace=NAMESPACE, unschedulable_after_s=0, identity="me"
    )
    cluster = KubernetesCluster(NAMESPACE, "me", configuration)
    found = await stack.enter_async_context(open_scaling(settings, CollectorRegistry(), cluster))
    assert found is not None
    await found.leadership.campaign()
    assert found.leadership.is_leading
    return found


def num_ready(pods: list[dict]) -> int:
    return sum(
        one["type"] == "Ready" and one["status"] == "True"
        for pod in pods
        for one in pod["status"].get("conditions", [])
    )


def num_refused(pods: list[dict]) -> int:
    return sum(
        one.get("reason") == "Unschedulable"
        for pod in pods
        for one in pod["status"].get("conditions", [])
    )


def desired(plane: ControlPlane) -> int:
    return plane.call("GET", f"{APPS}/deployments/llm")["spec"]["replicas"]


def reasons(plane: ControlPlane) -> list[str]:
    return [event["reason"] for event in plane.call("GET", f"{CORE}/events")["items"]]


async def tick(agent: Agent, scaling: Scaling, step_s: float) -> None:
    """One window of work; mixes vary, so that costs can be learnt."""
    agent.num_ticks += 1
    turn = agent.num_ticks
    for worker in agent.workers.values():
        worker.work(50 + turn % 3, 900 + 70 * (turn % 5), 1500 - 90 * (turn % 4), 10, step_s)
    await scaling.loop.tick()


async def test_a_pool_grows_into_what_nodes_have_and_shrinks_from_its_emptiest_end(
    plane, agent, scaling
):
    await agent.until(lambda pods: num_ready(pods) == 1, "the first worker")
    for _ in range(8):
        await tick(agent, scaling, 1e-6)
    assert desired(plane) == 1
    for _ in range(20):
        await agent.until(lambda pods: num_ready(pods) == min(desired(plane), GPUS), "its workers")
        await tick(agent, scaling, 0.3)
        if desired(plane) > GPUS:
            break
    assert desired(plane) > GPUS

    await agent.until(
        lambda pods: num_ready(pods) == GPUS and GPUS + num_refused(pods) == desired(plane),
        "pods without a node",
    )
    await tick(agent, scaling, 0.3)
    assert desired(plane) == GPUS
    await agent.until(lambda pods: len(pods) == GPUS, "the release of pods without a node")
    assert "ScaledUp" in reasons(plane)
    assert "ScaledDown" in reasons(plane)

    name, fullest = next(iter(agent.workers.items()))
    fullest.info.num_running = 2
    for _ in range(40):  # calm windows, until the demand of before is forgotten
        await scaling.loop.tick()
        if desired(plane) < GPUS:
            break
    left = desired(plane)
    assert left < GPUS
    marked = [pod for pod in agent.pods() if COST in pod["metadata"].get("annotations", {})]
    assert len(marked) == GPUS - left
    await agent.until(lambda pods: len(pods) == left, "the drain of the emptiest workers")
    assert name in agent.workers
    lease = plane.call(
        "GET", f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/understudy-controller"
    )
    assert lease["spec"]["holderIdentity"] == "me"
    await refuse_more(plane, agent)


async def refuse_more(plane: ControlPlane, agent: Agent) -> None:
    """The account may do nothing beyond its Role."""
    path = f"{CORE}/serviceaccounts/controller/token"
    token = plane.call("POST", path, {"spec": {"expirationSeconds": 3600}})["status"]["token"]
    configuration = Configuration(host=plane.url)
    configuration.ssl_ca_cert = str(plane.authority)
    configuration.api_key = {"authorization": f"Bearer {token}"}
    elsewhere = KubernetesCluster("default", "me", configuration)
    with pytest.raises(Unavailable, match="403"):
        await elsewhere.pods("app=llm")
    await elsewhere.aclose()
