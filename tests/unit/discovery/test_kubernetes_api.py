"""The EndpointSlice watch against an API server of our own, over real HTTP."""

import asyncio
import json
from contextlib import aclosing
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from understudy.discovery import Endpoint
from understudy.discovery.endpoint_slices import SliceDiscovery, SliceSelector
from understudy.discovery.kubernetes_api import KubernetesApi, watch_slices
from understudy.errors import FailedPrecondition

PATH = "/apis/discovery.k8s.io/v1/namespaces/prod/endpointslices"


def endpoint_slice(name, version, *addresses):
    return {
        "metadata": {"name": name, "resourceVersion": version},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]} for address in addresses],
        "ports": [{"name": "grpc", "port": 90}],
    }


def peers(*hosts):
    return frozenset(Endpoint(f"{host}:90") for host in hosts)


@dataclass
class ApiServer:
    """Lists `slices`; each watch plays the next of `watches`, the last one stays open."""

    slices: list = field(default_factory=list)
    watches: list = field(default_factory=list)
    list_statuses: list = field(default_factory=list)
    """Statuses of coming lists; 200 afterwards."""
    versions: list = field(default_factory=list)
    """Versions that watches asked for."""
    num_lists: int = 0
    watched: asyncio.Event = field(default_factory=asyncio.Event)
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    configuration: Configuration | None = None

    async def answer(self, request):
        assert request.query["labelSelector"] == "kubernetes.io/service-name=experts"
        if request.query.get("watch") != "true":
            return self._list()
        self.versions.append(request.query["resourceVersion"])
        self.watched.set()
        return await self._watch(request)

    def _list(self):
        self.num_lists += 1
        status = self.list_statuses.pop(0) if self.list_statuses else 200
        if status != 200:
            return web.Response(status=status)
        return web.json_response(
            {"metadata": {"resourceVersion": f"v{self.num_lists}"}, "items": self.slices}
        )

    async def _watch(self, request):
        response = web.StreamResponse()
        await response.prepare(request)
        events = self.watches.pop(0) if self.watches else None
        for kind, found in events or ():
            line = json.dumps({"type": kind, "object": found}) if isinstance(kind, str) else found
            await response.write(f"{line}\n".encode())
        if not self.watches:
            await self.closing.wait()
        return response


@pytest.fixture
async def server():
    api = ApiServer()
    app = web.Application()
    app.router.add_get(PATH, api.answer)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    api.configuration = Configuration(host=f"http://127.0.0.1:{port}")
    yield api
    api.closing.set()
    await runner.cleanup()


def discover(server):
    selector = SliceSelector("prod", "experts", "grpc")
    return SliceDiscovery(selector, KubernetesApi(server.configuration), first_backoff_s=0.001)


async def first(discovery, count):
    async with aclosing(discovery.watch()) as watch:
        seen = [await anext(watch) for _ in range(count)]
    await discovery.aclose()
    return seen


async def test_changes_arrive_as_snapshots_of_all_peers(server):
    server.slices = [endpoint_slice("a", "1", "10.0.0.1")]
    server.watches = [
        [
            ("ADDED", endpoint_slice("b", "2", "10.0.0.2")),
            ("BOOKMARK", {"metadata": {"resourceVersion": "3"}}),
            ("MODIFIED", endpoint_slice("a", "4", "10.0.0.3")),
            ("DELETED", endpoint_slice("b", "5")),
        ]
    ]

    seen = await first(discover(server), 4)

    assert seen == [
        peers("10.0.0.1"),
        peers("10.0.0.1", "10.0.0.2"),
        peers("10.0.0.3", "10.0.0.2"),
        peers("10.0.0.3"),
    ]


async def test_ended_watch_is_renewed_from_the_last_version_without_a_new_list(server):
    server.watches = [
        [("ADDED", endpoint_slice("a", "7", "10.0.0.1"))],
        [("ADDED", endpoint_slice("b", "8", "10.0.0.2"))],
    ]

    seen = await first(discover(server), 3)

    assert seen[-1] == peers("10.0.0.1", "10.0.0.2")
    assert server.versions[:2] == ["v1", "7"]
    assert server.num_lists == 1


async def test_expired_version_means_a_new_list(server):
    server.slices = [endpoint_slice("a", "1", "10.0.0.1")]
    gone = {"code": 410, "message": "too old"}
    server.watches = [
        [("ERROR", gone)],
        [("ADDED", endpoint_slice("b", "9", "10.0.0.2"))],
    ]

    seen = await first(discover(server), 2)

    assert seen[-1] == peers("10.0.0.1", "10.0.0.2")
    assert server.num_lists == 2


@pytest.mark.parametrize(
    "disturbance",
    [
        [("ERROR", {"code": 500, "message": "etcd is away"})],
        [(None, "this is not JSON")],
        [(None, '{"odd": "event"}')],
    ],
)
async def test_disturbed_watch_lists_again_and_goes_on(server, disturbance):
    server.watches = [disturbance, [("ADDED", endpoint_slice("b", "9", "10.0.0.2"))]]

    seen = await first(discover(server), 2)

    assert seen == [frozenset(), peers("10.0.0.2")]
    assert server.num_lists == 2


async def test_refused_lists_are_retried(server):
    server.list_statuses = [503, 403]
    server.slices = [endpoint_slice("a", "1", "10.0.0.1")]

    assert await first(discover(server), 1) == [peers("10.0.0.1")]
    assert server.num_lists == 3


async def test_closing_ends_a_running_watch(server):
    discovery = discover(server)
    watch = discovery.watch()
    assert await anext(watch) == frozenset()
    waiting = asyncio.ensure_future(anext(watch, "ended"))
    await server.watched.wait()

    await discovery.aclose()

    assert await waiting == "ended"


async def test_without_a_cluster_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(
        "kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "absent")
    )
    discovery = watch_slices(SliceSelector("prod", "experts", "grpc"))

    with pytest.raises(FailedPrecondition, match="list the peers as host:port"):
        await anext(discovery.watch())
    await discovery.aclose()
