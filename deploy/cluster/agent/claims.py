"""Persistent volumes as folders: made for claims of the default class, removed with them."""

import asyncio
import shutil
from pathlib import Path
from typing import Final

import aiohttp

from deploy.cluster.agent.api import CONFLICT, NOT_FOUND, Api, ApiError, Cache, Json
from deploy.cluster.agent.environment import ConfigError

CLASS: Final = "folder"
RETRY_S: Final = 1.0
PROVISIONER: Final = "understudy.dev/folder"
_VOLUMES: Final = "/api/v1/persistentvolumes"


def volume_for(claim: Json, folder: Path) -> Json:
    """Return the volume that only this claim can bind."""
    metadata, spec = claim["metadata"], claim["spec"]
    return {
        "metadata": {
            "name": f"pvc-{metadata['uid']}",
            "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER},
        },
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": CLASS,
            "volumeMode": "Filesystem",
            "hostPath": {"path": str(folder)},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        },
    }


class Claims:
    """Provisions claims and finds their folders."""

    def __init__(self, api: Api, claims: Cache, persistent: Cache, folder: Path) -> None:
        self._api, self._claims, self._persistent = api, claims, persistent
        self._folder = folder
        self._is_changed = asyncio.Event()
        for cache in (claims, persistent):
            cache.listen(lambda *_: self._is_changed.set())

    async def run(self) -> None:
        """Make a volume for each claim that waits, and remove those that were released."""
        while True:
            self._is_changed.clear()
            try:
                await self._look_around()
            except (ApiError, aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(RETRY_S)
                continue
            await self._is_changed.wait()

    async def _look_around(self) -> None:
        for claim in self._claims.values():
            spec = claim["spec"]
            if spec.get("storageClassName") == CLASS and not spec.get("volumeName"):
                await self._provide(claim)
        for volume in self._persistent.values():
            if volume.get("status", {}).get("phase") == "Released":
                await self._remove(volume)

    def folder_of(self, namespace: str, name: str) -> Path:
        """Return the folder behind a bound claim. Raises ConfigError before it is bound."""
        claim = self._claims.get(namespace, name)
        volume = claim and self._persistent.get("", claim["spec"].get("volumeName", ""))
        if not claim or claim.get("status", {}).get("phase") != "Bound" or not volume:
            raise ConfigError(f"claim {name!r} is not bound")
        if volume["spec"].get("storageClassName") != CLASS:
            raise ConfigError(f"claim {name!r} is bound to a volume that this agent did not make")
        return Path(volume["spec"]["hostPath"]["path"])

    async def _provide(self, claim: Json) -> None:
        folder = self._folder / str(claim["metadata"]["uid"])
        folder.mkdir(parents=True, exist_ok=True)
        try:
            await self._api.request("POST", _VOLUMES, volume_for(claim, folder))
        except ApiError as error:
            if error.status != CONFLICT:
                raise

    async def _remove(self, volume: Json) -> None:
        if (
            volume["metadata"].get("annotations", {}).get("pv.kubernetes.io/provisioned-by")
            != PROVISIONER
        ):
            return
        shutil.rmtree(volume["spec"]["hostPath"]["path"], ignore_errors=True)
        try:
            await self._api.request("DELETE", f"{_VOLUMES}/{volume['metadata']['name']}")
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
