"""A Kubernetes API server at the level of HTTP: scales, pods, Events, Leases, refusals."""

import itertools
from dataclasses import dataclass, field

from aiohttp import web
from kubernetes.aio.client import Configuration

NAMESPACE = "prod"
COST = "controller.kubernetes.io/pod-deletion-cost"


def pod(name: str, ip: str, metrics_port: int, grpc_port: int, ready: bool = True, **status):
    """Return a pod object of the workload "llm"."""
    ports = [
        {"name": "grpc", "containerPort": grpc_port},
        {"name": "metrics", "containerPort": metrics_port},
    ]
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "annotations": {}},
        "spec": {"containers": [{"name": "worker", "ports": ports}]},
        "status": {"phase": "Running", "podIP": ip, "conditions": conditions, **status},
    }


@dataclass
class ApiServer:
    """One namespace with one Deployment "llm"; its pods are what a test says."""

    replicas: int = 1
    pods: dict = field(default_factory=dict)
    events: list = field(default_factory=list)
    leases: dict = field(default_factory=dict)
    requests: list = field(default_factory=list)
    refusals: dict = field(default_factory=dict)
    """Status that requests of a method are refused with."""
    page: int = 500
    configuration: Configuration | None = None

    def __post_init__(self):
        self.versions = itertools.count(2)
        self.version = "1"

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._noted])
        scale = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/llm/scale"
        leases = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
        core = f"/api/v1/namespaces/{NAMESPACE}"
        app.add_routes(
            [
                web.get(scale, self.read_scale),
                web.patch(scale, self.patch_scale),
                web.get(f"{core}/pods", self.list_pods),
                web.patch(core + "/pods/{name}", self.patch_pod),
                web.post(f"{core}/events", self.create_event),
                web.get(leases + "/{name}", self.read_lease),
                web.post(leases, self.create_lease),
                web.put(leases + "/{name}", self.replace_lease),
            ]
        )
        return app

    @web.middleware
    async def _noted(self, request, handler):
        self.requests.append((request.method, request.path))
        if request.method in self.refusals:
            return web.json_response({"message": "no"}, status=self.refusals[request.method])
        return await handler(request)

    def scale(self):
        return {
            "kind": "Scale",
            "metadata": {"name": "llm", "resourceVersion": self.version},
            "spec": {"replicas": self.replicas} if self.replicas else {},
            "status": {"replicas": len(self.pods), "selector": "app=llm"},
        }

    async def read_scale(self, request):
        return web.json_response(self.scale())

    async def patch_scale(self, request):
        assert request.content_type == "application/merge-patch+json"
        body = await request.json()
        if body["metadata"]["resourceVersion"] != self.version:
            return web.json_response({"message": "modified"}, status=409)
        self.replicas, self.version = body["spec"]["replicas"], str(next(self.versions))
        return web.json_response(self.scale())

    async def list_pods(self, request):
        wanted = self.pods if request.query["labelSelector"] == "app=llm" else {}
        start = int(request.query.get("continue", "0"))
        items = list(wanted.values())[start : start + self.page]
        rest = str(start + self.page) if start + self.page < len(wanted) else ""
        return web.json_response({"metadata": {"continue": rest}, "items": items})

    async def patch_pod(self, request):
        name = request.match_info["name"]
        if name not in self.pods:
            return web.json_response({"message": "gone"}, status=404)
        changes = (await request.json())["metadata"]["annotations"]
        annotations = self.pods[name]["metadata"]["annotations"]
        annotations.update(changes)
        for key in [key for key, value in annotations.items() if value is None]:
            del annotations[key]
        return web.json_response(self.pods[name])

    async def create_event(self, request):
        self.events.append(await request.json())
        return web.json_response(self.events[-1], status=201)

    async def read_lease(self, request):
        lease = self.leases.get(request.match_info["name"])
        return web.json_response(lease or {}, status=200 if lease else 404)

    async def create_lease(self, request):
        body = await request.json()
        if body["metadata"]["name"] in self.leases:
            return web.json_response({"message": "exists"}, status=409)
        return self._stored(body, 201)

    async def replace_lease(self, request):
        body = await request.json()
        held = self.leases[body["metadata"]["name"]]["metadata"]["resourceVersion"]
        if body["metadata"]["resourceVersion"] != held:
            return web.json_response({"message": "modified"}, status=409)
        return self._stored(body, 200)

    def _stored(self, body, status):
        body["metadata"]["resourceVersion"] = str(next(self.versions))
        self.leases[body["metadata"]["name"]] = body
        return web.json_response(body, status=status)
