"""The life of one pod on a node: volumes, network, containers in order, status, and its end."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from deploy.cluster.agent import probes, sandbox, status, volumes
from deploy.cluster.agent.api import ApiError, Json
from deploy.cluster.agent.container import LAST_CHANCE_S, Container
from deploy.cluster.agent.environment import ConfigError, command_line, expand, resolve
from deploy.cluster.agent.images import Image
from deploy.cluster.agent.launcher import ContainerOrder, Mount
from deploy.cluster.agent.launching import Launched, LaunchError
from deploy.cluster.agent.pod_volumes import PodVolumes, VolumeSource

VOLUME_RETRY_S: Final = 0.5


class Node(VolumeSource, Protocol):
    """What a pod needs of the node it runs on."""

    images: Mapping[str, Image]
    address: str

    def services(self, namespace: str) -> list[Json]:
        """Return the Services of a namespace."""

    def status_changed(self, pod: "Pod") -> None:
        """Tell the API server the pod's status soon."""

    def event(self, pod: Json, reason: str, message: str, *, is_warning: bool) -> None:
        """Tell the API server of something that happened to the pod."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a node gives a pod."""

    address: str
    peer: str
    folder: Path


class Pod:
    """One pod; `run` ends when it has ended, `stop` ends it."""

    def __init__(self, node: Node, pod: Json, place: Place) -> None:
        self.object, self._node, self.place = pod, node, place
        self.folder = place.folder
        spec = pod["spec"]
        self._grace_s = float(spec.get("terminationGracePeriodSeconds", 30))
        policy = spec.get("restartPolicy", "Always")
        self.initial = [self._initial(item, policy) for item in spec.get("initContainers", [])]
        self.main = [Container(self, item, policy, self._grace_s) for item in spec["containers"]]
        self._network: Launched | None = None
        self._volumes = PodVolumes(node, place.folder)
        self._system: list[Mount] = []
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._conditions: dict[str, Json] = {}
        self._is_initialised, self._is_final, self._has_failed = False, False, False
        self._started_at = status.now()

    def _initial(self, spec: Json, policy: str) -> Container:
        is_sidecar = spec.get("restartPolicy") == "Always"
        own = "Always" if is_sidecar else "Never" if policy == "Never" else "OnFailure"
        return Container(self, spec, own, self._grace_s)

    @property
    def uid(self) -> str:
        """The pod's unique id."""
        return str(self.object["metadata"]["uid"])

    @property
    def sidecars(self) -> list[Container]:
        """Initial containers that stay."""
        return [item for item in self.initial if item.spec.get("restartPolicy") == "Always"]

    def container(self, name: str) -> Container | None:
        """Return a container by its name."""
        found = (item for item in [*self.initial, *self.main] if item.spec["name"] == name)
        return next(found, None)

    async def run(self) -> None:
        """Carry the pod through its life, until no container will run again."""
        self.changed()
        await self._prepare()
        await self._connect()
        self.changed()
        if not await self._initialise():
            self._has_failed = True
        else:
            self._is_initialised = True
            self.changed()
            await asyncio.wait([self._start(item) for item in self.main])
        self._is_final = True
        await self._stop_sidecars(asyncio.get_running_loop().time() + self._grace_s)
        self.changed()
        self._free()

    async def stop(self, grace_s: float) -> None:
        """End every container in order within the grace period, and free what the pod has."""
        deadline_s = asyncio.get_running_loop().time() + grace_s
        ordinary = [item for item in self.initial if item not in self.sidecars]
        await asyncio.gather(*(item.stop(deadline_s) for item in [*ordinary, *self.main]))
        await self._stop_sidecars(deadline_s)
        await asyncio.gather(*self._runs.values(), return_exceptions=True)
        self._is_final = True
        self._free()

    def kill(self) -> None:
        """End every container at once."""
        for item in [*self.main, *self.initial]:
            item.kill()

    async def refresh(self) -> None:
        """Bring files of ConfigMaps, Secrets and tokens up to date."""
        await self._volumes.refresh(self._seen())

    async def _prepare(self) -> None:
        told = ""
        while True:
            try:
                await self._volumes.make(self._seen())
            except (ConfigError, ApiError) as error:
                if str(error) != told:
                    told = str(error)
                    self.event("FailedMount", told, is_warning=True)
                await asyncio.sleep(VOLUME_RETRY_S)
            else:
                return

    async def _connect(self) -> None:
        system = self.folder / "etc"
        self._system = sandbox.write_system_files(self.object, self.place.address, system)
        name = sandbox.names_of(self.object)[-1]
        log = self.folder / "network.log"
        while self._network is None:
            try:
                self._network = await sandbox.make_network(
                    name, self.place.address, self.place.peer, log
                )
            except LaunchError as error:
                self.event("FailedCreatePodSandBox", str(error), is_warning=True)
                await asyncio.sleep(VOLUME_RETRY_S)

    async def _initialise(self) -> bool:
        for item in self.initial:
            running = self._start(item)
            if item in self.sidecars:
                started = asyncio.ensure_future(item.started.wait())
                await asyncio.wait((running, started), return_when=asyncio.FIRST_COMPLETED)
                started.cancel()
                if not item.started.is_set():
                    return False
            else:
                await asyncio.wait((running,))
                if not item.state.has_succeeded:
                    return False
                item.state.is_ready = True
        return True

    def _start(self, item: Container) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(item.run())
        self._runs[str(item.spec["name"])] = task
        return task

    async def _stop_sidecars(self, deadline_s: float) -> None:
        for item in reversed(self.sidecars):
            last_s = asyncio.get_running_loop().time() + LAST_CHANCE_S
            await item.stop(max(deadline_s, last_s))

    def _free(self) -> None:
        if self._network is not None:
            self._network.kill()
            self._network = None
        self._volumes.free()

    def _seen(self) -> Json:
        current = {**self.object.get("status", {})}
        current |= {"podIP": self.place.address, "hostIP": self._node.address}
        return {**self.object, "status": current}

    def order(self, container: Json) -> ContainerOrder:
        """Say how a container starts. Raises ConfigError where it cannot."""
        if self._network is None:
            raise ConfigError("the pod has no network")
        namespace = self.object["metadata"]["namespace"]
        user, group = sandbox.user_of(self.object, container)
        image = sandbox.find_image(container["image"], self._node.images)
        lookup = self._node.lookup(namespace)
        links = self._node.services(namespace)
        values = resolve(self._seen(), container, image.environment, lookup, links)
        mounts = volumes.container_mounts(
            container, self._volumes.folders, lambda text: expand(text, values)
        )
        security = container.get("securityContext", {})
        return {
            "sandbox": self._network.launcher.pid,
            "root": str(self.folder.parent / "root"),
            "mounts": [*image.mounts, *self._system, *self._shared(mounts), *mounts],
            "links": dict(image.links),
            "is_root_read_only": bool(security.get("readOnlyRootFilesystem")),
            "command": command_line(container, image.command, values),
            "environment": values,
            "folder": container.get("workingDir") or image.folder,
            "user": user,
            "group": group,
            "keeps_capabilities": sandbox.keeps_capabilities(container, user),
            "may_gain_privileges": bool(security.get("allowPrivilegeEscalation", True)),
        }

    def _shared(self, mounts: Iterable[Mount]) -> list[Mount]:
        if any(mount["target"].rstrip("/") == "/dev/shm" for mount in mounts):  # noqa: S108
            return []
        source = str(self._volumes.shared_memory)
        return [{"source": source, "target": "/dev/shm", "is_read_only": False}]  # noqa: S108

    def target(self, container: Json, run: probes.Exec) -> probes.Target:
        """Say where a container is probed."""
        named = [port for port in container.get("ports", []) if "name" in port]
        ports = {port["name"]: int(port["containerPort"]) for port in named}
        return probes.Target(self.place.address, ports, run)

    def changed(self) -> None:
        """Have the pod's status told."""
        self._node.status_changed(self)

    def event(self, reason: str, message: str, *, is_warning: bool) -> None:
        """Tell of something that happened to the pod."""
        self._node.event(self.object, reason, message, is_warning=is_warning)

    def status(self) -> Json:
        """Return the pod's status as the API server wants it."""
        main = [item.state for item in self.main]
        phase = status.phase(
            main,
            is_initialised=self._is_initialised,
            is_final=self._is_final,
            has_failed=self._has_failed,
        )
        told = status.conditions(
            main,
            has_network=self._network is not None,
            is_initialised=self._is_initialised,
            current=phase,
            old=self._conditions,
        )
        self._conditions = {condition["type"]: condition for condition in told}
        has_address = self._network is not None or self._is_final
        addresses = [{"ip": self.place.address}] if has_address else []
        return {
            "phase": phase,
            "conditions": told,
            "hostIP": self._node.address,
            "hostIPs": [{"ip": self._node.address}],
            "podIP": self.place.address if has_address else None,
            "podIPs": addresses,
            "startTime": self._started_at,
            "initContainerStatuses": [status.container_status(item.state) for item in self.initial],
            "containerStatuses": [status.container_status(item.state) for item in self.main],
        }
