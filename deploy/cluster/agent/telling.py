"""What the agent tells the API server: pod statuses, the last of each, and events."""

import asyncio
import itertools
import sys
from contextlib import suppress
from typing import Final

import aiohttp

from deploy.cluster.agent.api import NOT_FOUND, STRATEGIC, Api, ApiError, Json
from deploy.cluster.agent.pod import Pod
from deploy.cluster.agent.status import now

RETRY_S: Final = 1.0
MAX_EVENTS: Final = 1000
SOURCE: Final = "node-agent"


def pod_path(pod: Json) -> str:
    """Return a pod's place at the API server."""
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


class Teller:
    """Sends statuses and events behind the back of those who have them."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._dirty: dict[str, Pod] = {}
        self._is_dirty = asyncio.Event()
        self._events: asyncio.Queue[tuple[str, Json]] = asyncio.Queue(MAX_EVENTS)
        self._num = itertools.count(1)

    def status_changed(self, pod: Pod) -> None:
        """Send the pod's status soon."""
        self._dirty[pod.uid] = pod
        self._is_dirty.set()

    def forget(self, pod: Pod) -> None:
        """Send nothing more of a pod that is gone."""
        self._dirty.pop(pod.uid, None)

    async def send_statuses(self) -> None:
        """Send what changed, for ever."""
        while True:
            await self._is_dirty.wait()
            self._is_dirty.clear()
            batch, self._dirty = self._dirty, {}
            await asyncio.gather(*(self._send(pod) for pod in batch.values()))

    async def _send(self, pod: Pod) -> None:
        try:
            await self.send_status(pod)
        except ApiError as error:
            if error.status != NOT_FOUND:
                sys.stderr.write(f"status of {pod_path(pod.object)}: {error}\n")
        except (aiohttp.ClientError, TimeoutError):
            await asyncio.sleep(RETRY_S)
            self.status_changed(pod)

    async def send_status(self, pod: Pod) -> None:
        """Send the pod's status now, to the pod of this very id."""
        body = {"metadata": {"uid": pod.uid}, "status": pod.status()}
        await self._api.request("PATCH", f"{pod_path(pod.object)}/status", body, STRATEGIC)

    def event(self, pod: Json, reason: str, message: str, *, is_warning: bool) -> None:
        """Send an event soon; while too many wait, it is dropped."""
        metadata = pod["metadata"]
        name = f"{metadata['name']}.{metadata['uid'][:8]}.{next(self._num):x}"
        subject = {key: metadata[key] for key in ("name", "namespace", "uid")}
        event: Json = {
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", **subject},
            "reason": reason,
            "message": message[:1000],
            "type": "Warning" if is_warning else "Normal",
            "count": 1,
            "firstTimestamp": now(),
            "lastTimestamp": now(),
            "source": {"component": SOURCE, "host": pod["spec"].get("nodeName", "")},
        }
        with suppress(asyncio.QueueFull):
            path = f"/api/v1/namespaces/{metadata['namespace']}/events"
            self._events.put_nowait((path, event))

    async def send_events(self) -> None:
        """Send events in order, for ever; one that is refused is dropped."""
        while True:
            path, event = await self._events.get()
            with suppress(ApiError, aiohttp.ClientError, TimeoutError):
                await self._api.request("POST", path, event)
