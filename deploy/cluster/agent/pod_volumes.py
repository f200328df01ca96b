"""The folders behind a pod's volumes, from before its first container to after its last."""

import shutil
from pathlib import Path
from typing import Final, Protocol

from deploy.cluster import namespaces
from deploy.cluster.agent import volumes
from deploy.cluster.agent.api import Json
from deploy.cluster.agent.environment import ConfigError, Lookup

SHARED_MEMORY: Final = "mode=1777,size=64m"
"""Of `/dev/shm`, as container runtimes give it to a pod."""


class VolumeSource(Protocol):
    """Where volumes get what they hold."""

    def lookup(self, namespace: str) -> Lookup:
        """Return the ConfigMaps and Secrets of a namespace."""

    async def token(self, pod: Json, source: Json) -> str:
        """Return a current token of the pod's service account."""

    def claim_folder(self, namespace: str, claim: str) -> Path:
        """Return the folder behind a bound claim. Raises ConfigError before it is bound."""


class PodVolumes:
    """All volumes of one pod by name."""

    def __init__(self, source: VolumeSource, folder: Path) -> None:
        self._source, self._folder = source, folder / "volumes"
        self.shared_memory = folder / "shm"
        self.folders: dict[str, Path] = {}
        self._tokens: dict[str, str] = {}
        self._in_memory: list[Path] = []

    async def make(self, pod: Json) -> None:
        """Make what is missing. Raises ConfigError where something it needs is not there yet."""
        if self.shared_memory not in self._in_memory:
            self.shared_memory.mkdir(parents=True, exist_ok=True)
            flags = namespaces.NO_SUID | namespaces.NO_DEVICES
            namespaces.mount("tmpfs", self.shared_memory, flags, SHARED_MEMORY)
            self._in_memory.append(self.shared_memory)
        for volume in pod["spec"].get("volumes", []):
            if volume["name"] not in self.folders:
                self.folders[volume["name"]] = await self._make_one(pod, volume)

    async def refresh(self, pod: Json) -> None:
        """Bring files up to date with ConfigMaps, Secrets and tokens."""
        for volume in pod["spec"].get("volumes", []):
            if volumes.kind_of(volume) in volumes.FILES and volume["name"] in self.folders:
                await self._write_files(pod, volume)

    def free(self) -> None:
        """Remove everything but what claims hold."""
        while self._in_memory:
            namespaces.unmount(self._in_memory.pop())
        self._tokens.clear()
        self.folders.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _make_one(self, pod: Json, volume: Json) -> Path:
        folder, kind = self._folder / str(volume["name"]), volumes.kind_of(volume)
        if kind == "persistentVolumeClaim":
            claim = str(volume[kind]["claimName"])
            return self._source.claim_folder(str(pod["metadata"]["namespace"]), claim)
        if kind == "emptyDir":
            if volumes.make_empty(volume, folder):
                self._in_memory.append(folder)
        elif kind in volumes.FILES:
            folder.mkdir(parents=True, exist_ok=True)
            await self._write_files(pod, volume)
        else:
            raise ConfigError(f"volumes of kind {kind!r} are not supported by this agent")
        return folder

    async def _write_files(self, pod: Json, volume: Json) -> None:
        for source in volume.get("projected", {}).get("sources", []):
            if "serviceAccountToken" in source:
                token = source["serviceAccountToken"]
                self._tokens[token["path"]] = await self._source.token(pod, token)
        lookup = self._source.lookup(pod["metadata"]["namespace"])
        wanted = volumes.files(volume, pod, lookup, lambda source: self._tokens[source["path"]])
        volumes.swap_files(self._folder / volume["name"], wanted)
