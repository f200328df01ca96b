"""Runs the pods bound to the agent's nodes, and what they need around them."""

import asyncio
import itertools
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp

from deploy.cluster.agent import nodes
from deploy.cluster.agent.api import CONFLICT, NOT_FOUND, Api, ApiError, Cache, Json
from deploy.cluster.agent.claims import Claims
from deploy.cluster.agent.container import Container
from deploy.cluster.agent.environment import ConfigError, Lookup
from deploy.cluster.agent.images import Image
from deploy.cluster.agent.logs import LogServer
from deploy.cluster.agent.nodes import Addresses, NodeSpec
from deploy.cluster.agent.pod import Place, Pod
from deploy.cluster.agent.services import Services
from deploy.cluster.agent.status import is_overruled
from deploy.cluster.agent.telling import Teller, pod_path
from deploy.cluster.layout import Layout

REFRESH_S: Final = 60.0
DELETE_RETRY_S: Final = 1.0
TOKEN_RENEWED_AT: Final = 0.8
DEFAULT_TOKEN_S: Final = 3600
_WATCHED: Final = {
    "pods": "/api/v1/pods",
    "services": "/api/v1/services",
    "slices": "/apis/discovery.k8s.io/v1/endpointslices",
    "ConfigMap": "/api/v1/configmaps",
    "Secret": "/api/v1/secrets",
    "claims": "/api/v1/persistentvolumeclaims",
    "volumes": "/api/v1/persistentvolumes",
}


@dataclass(slots=True)
class Running:
    """A pod and what is done with it."""

    pod: Pod
    life: asyncio.Task[None]
    end: asyncio.Task[None] | None = None
    tokens: dict[str, tuple[str, float]] = field(default_factory=dict)


class Agent:
    """All nodes in one process."""

    def __init__(
        self, api: Api, layout: Layout, specs: list[NodeSpec], images: Mapping[str, Image]
    ) -> None:
        self._api, self._layout = api, layout
        self._caches = {name: Cache(api, path) for name, path in _WATCHED.items()}
        self.teller = Teller(api)
        self.images = images
        self.services = Services(self._caches["services"], self._caches["slices"])
        claims = (self._caches["claims"], self._caches["volumes"])
        self._claims = Claims(api, *claims, layout.claims)
        self._nodes = {spec.name: OneNode(self, spec) for spec in specs}
        self._running: dict[str, Running] = {}
        self._num_pods = itertools.count(1)
        self._is_stale = asyncio.Event()

    async def run(self) -> None:
        """Work until cancelled."""
        (self._layout.pods / "root").mkdir(parents=True, exist_ok=True)
        await LogServer(self._layout, self._find).start()
        for kind in ("ConfigMap", "Secret"):
            self._caches[kind].listen(lambda *_: self._is_stale.set())
        async with asyncio.TaskGroup() as tasks:
            for name, cache in self._caches.items():
                if name != "pods":
                    tasks.create_task(cache.run())
            for name, cache in self._caches.items():
                if name != "pods":
                    await cache.synced()
            tasks.create_task(self.services.run())
            tasks.create_task(self._claims.run())
            tasks.create_task(self.teller.send_statuses())
            tasks.create_task(self.teller.send_events())
            tasks.create_task(self._refresh_for_ever())
            self._caches["pods"].listen(self._pod_changed)
            tasks.create_task(self._caches["pods"].run())
            for node in self._nodes.values():
                await nodes.register(self._api, node.spec)
                tasks.create_task(nodes.renew_for_ever(self._api, node.spec))

    def _pod_changed(self, event: str, pod: Json) -> None:
        node = self._nodes.get(pod["spec"].get("nodeName", ""))
        if node is None:
            return
        running = self._running.get(pod["metadata"]["uid"])
        if event == "DELETED":
            if running is not None:
                running.pod.kill()
                self._end(running, 0)
            return
        if running is None:
            running = self._adopt(node, pod)
        running.pod.object = pod
        if "deletionTimestamp" in pod["metadata"]:
            self._end(running, pod["metadata"].get("deletionGracePeriodSeconds", 0))
        elif is_overruled(pod):
            self.teller.status_changed(running.pod)

    def _adopt(self, node: "OneNode", pod: Json) -> Running:
        metadata = pod["metadata"]
        folder = self._layout.pods / f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}"
        place = Place(node.addresses.take(), f"pod{next(self._num_pods)}", folder)
        one = Pod(node, pod, place)
        is_over = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
        life = one.run() if not is_over else asyncio.sleep(0)
        running = Running(one, asyncio.get_running_loop().create_task(life))
        running.life.add_done_callback(_tell_of_failure)
        self._running[one.uid] = running
        return running

    def _end(self, running: Running, grace_s: float) -> None:
        if running.end is None:
            ending = self._carry_off(running, grace_s)
            running.end = asyncio.get_running_loop().create_task(ending)
            running.end.add_done_callback(_tell_of_failure)

    async def _carry_off(self, running: Running, grace_s: float) -> None:
        pod = running.pod
        running.life.cancel()
        await asyncio.wait((running.life,))
        await pod.stop(grace_s)
        with suppress(ApiError, aiohttp.ClientError, TimeoutError):
            await self.teller.send_status(pod)
        self.teller.forget(pod)
        await self._delete(pod)
        node = self._nodes[pod.object["spec"]["nodeName"]]
        node.addresses.give_back(pod.place.address)
        del self._running[pod.uid]

    async def _delete(self, pod: Pod) -> None:
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.uid}}
        while True:
            try:
                await self._api.request("DELETE", pod_path(pod.object), body)
            except ApiError as error:
                if error.status in (NOT_FOUND, CONFLICT):
                    return
            except (aiohttp.ClientError, TimeoutError):
                pass
            else:
                return
            await asyncio.sleep(DELETE_RETRY_S)

    async def _refresh_for_ever(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await self._is_stale.wait()
            self._is_stale.clear()
            for running in list(self._running.values()):
                with suppress(ConfigError, ApiError, aiohttp.ClientError, TimeoutError):
                    await running.pod.refresh()

    def lookup(self, namespace: str) -> Lookup:
        """Return the ConfigMaps and Secrets of a namespace."""
        return lambda kind, name: self._caches[kind].get(namespace, name)

    def claim_folder(self, namespace: str, claim: str) -> Path:
        """Return the folder behind a bound claim."""
        return self._claims.folder_of(namespace, claim)

    async def token(self, pod: Json, source: Json) -> str:
        """Return a token bound to the pod, a new one once most of its lifetime is over."""
        metadata, spec = pod["metadata"], pod["spec"]
        known = self._running[metadata["uid"]].tokens
        old = known.get(source["path"])
        if old is not None and old[1] > time.monotonic():
            return old[0]
        lifetime_s = source.get("expirationSeconds", DEFAULT_TOKEN_S)
        bound = {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
        request: Json = {"expirationSeconds": lifetime_s, "boundObjectRef": bound}
        if "audience" in source:
            request["audiences"] = [source["audience"]]
        account = f"{spec.get('serviceAccountName', 'default')}/token"
        path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}"
        answer = await self._api.request("POST", path, {"spec": request})
        token = str(answer["status"]["token"])
        known[source["path"]] = (token, time.monotonic() + lifetime_s * TOKEN_RENEWED_AT)
        return token

    def _find(self, namespace: str, pod: str, container: str) -> Container | None:
        for running in self._running.values():
            metadata = running.pod.object["metadata"]
            if (metadata["namespace"], metadata["name"]) == (namespace, pod):
                return running.pod.container(container)
        return None


def _tell_of_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        traceback.print_exception(error)


class OneNode:
    """What one node is to its pods."""

    def __init__(self, agent: Agent, spec: NodeSpec) -> None:
        self.spec, self._agent = spec, agent
        self.images, self.address = agent.images, spec.address
        self.addresses = Addresses(spec)
        self.lookup, self.services = agent.lookup, agent.services.of
        self.claim_folder, self.token = agent.claim_folder, agent.token
        self.status_changed, self.event = agent.teller.status_changed, agent.teller.event
