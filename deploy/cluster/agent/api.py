"""The agent's way to the API server: requests, and caches of what it watches."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp

Json = dict[str, Any]
"""An object as the API server sends it; its fields are documented by Kubernetes."""

MERGE: Final = "application/merge-patch+json"
STRATEGIC: Final = "application/strategic-merge-patch+json"
REQUEST_TIMEOUT_S: Final = 30
MAX_LINE_BYTES: Final = 8 << 20
_RETRY_S: Final = 1.0
_GONE: Final = 410
_FIRST_ERROR: Final = 400
NOT_FOUND: Final = 404
CONFLICT: Final = 409

Changed = Callable[[str, Json], None]


class ApiError(Exception):
    """The API server refused a request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Api:
    """JSON requests to one API server."""

    def __init__(self, session: aiohttp.ClientSession, server: str) -> None:
        self._session, self._server = session, server

    async def request(
        self, method: str, path: str, body: Json | None = None, kind: str = "application/json"
    ) -> Json:
        """Send one request and return the answer."""
        data = None if body is None else json.dumps(body).encode()
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        async with self._session.request(
            method,
            self._server + path,
            data=data,
            headers={"content-type": kind},
            timeout=timeout,
        ) as answer:
            text = await answer.text()
            if answer.status >= _FIRST_ERROR:
                raise ApiError(answer.status, text[:500])
            content: Json = json.loads(text)
            return content

    async def watch(self, path: str, version: str) -> AsyncIterator[Json]:
        """Yield changes since a version, until the server ends the stream."""
        separator = "&" if "?" in path else "?"
        url = f"{self._server}{path}{separator}watch=1&resourceVersion={version}"
        timeout = aiohttp.ClientTimeout(total=None, sock_read=None)
        async with self._session.get(f"{url}&allowWatchBookmarks=true", timeout=timeout) as answer:
            if answer.status >= _FIRST_ERROR:
                raise ApiError(answer.status, (await answer.text())[:500])
            async for line in answer.content:
                yield json.loads(line)


@asynccontextmanager
async def connect(kubeconfig: Path) -> AsyncIterator[Api]:
    """Open the API server that a kubeconfig of this cluster names."""
    config: Json = json.loads(await asyncio.to_thread(kubeconfig.read_text))
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(cafile=cluster["certificate-authority"])
    context.load_cert_chain(user["client-certificate"], user["client-key"])
    connector = aiohttp.TCPConnector(ssl=context, limit=0)
    async with aiohttp.ClientSession(connector=connector, read_bufsize=MAX_LINE_BYTES) as session:
        yield Api(session, cluster["server"])


class Cache:
    """The objects of one kind as the API server last said."""

    def __init__(self, api: Api, path: str) -> None:
        self._api, self._path = api, path
        self._objects: dict[tuple[str, str], Json] = {}
        self._listeners: list[Changed] = []
        self._synced = asyncio.Event()

    def get(self, namespace: str, name: str) -> Json | None:
        """Return an object, or None where there is none."""
        return self._objects.get((namespace, name))

    def values(self) -> list[Json]:
        """Return all objects."""
        return list(self._objects.values())

    def listen(self, changed: Changed) -> None:
        """Call back on each change with `ADDED`, `MODIFIED` or `DELETED` and the object."""
        self._listeners.append(changed)

    async def synced(self) -> None:
        """Wait until the cache holds everything that was there."""
        await self._synced.wait()

    async def run(self) -> None:
        """Keep the cache true for ever: list, watch, and list again where the watch breaks."""
        while True:
            try:
                version = await self._list()
                self._synced.set()
                while True:
                    version = await self._watch(version)
            except (ApiError, aiohttp.ClientError, TimeoutError, ValueError):
                await asyncio.sleep(_RETRY_S)

    async def _list(self) -> str:
        answer = await self._api.request("GET", self._path)
        fresh = {_key(item): item for item in answer["items"]}
        for key in self._objects.keys() - fresh.keys():
            self._tell("DELETED", self._objects.pop(key))
        for key, item in fresh.items():
            known = self._objects.get(key)
            self._objects[key] = item
            if known is None or _version(known) != _version(item):
                self._tell("ADDED" if known is None else "MODIFIED", item)
        return str(answer["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> str:
        async for event in self._api.watch(self._path, version):
            item = event["object"]
            if event["type"] == "ERROR":
                raise ApiError(item.get("code", _GONE), item.get("message", "watch"))
            version = _version(item)
            if event["type"] == "BOOKMARK":
                continue
            if event["type"] == "DELETED":
                self._objects.pop(_key(item), None)
            else:
                self._objects[_key(item)] = item
            self._tell(event["type"], item)
        return version

    def _tell(self, event: str, item: Json) -> None:
        for listener in self._listeners:
            listener(event, item)


def _key(item: Json) -> tuple[str, str]:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def _version(item: Json) -> str:
    return str(item["metadata"]["resourceVersion"])
