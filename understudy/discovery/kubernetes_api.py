"""EndpointSlices over the Kubernetes API, as plain JSON.

The `kubernetes` package brings configuration, credentials and connection; it takes a second to
import, so that happens on the first call and off the event loop.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, cast

from understudy.discovery.endpoint_slices import (
    Event,
    Slice,
    SliceDiscovery,
    SliceSelector,
    VersionExpired,
)
from understudy.errors import FailedPrecondition, Unavailable

if TYPE_CHECKING:
    from aiohttp import ClientResponse
    from kubernetes.aio.client import ApiClient, Configuration, DiscoveryV1Api

MAX_LINE_BYTES: Final = 4 * 1024 * 1024
WATCH_S: Final = 240
REQUEST_TIMEOUT_S: Final = 10.0
_GONE: Final = 410
_OK: Final = 200
_OTHERWISE: Final = "list the peers as host:port"


class KubernetesApi:
    """A `SliceSource` that asks the API server of a configuration.

    Without one it takes the pod's service account, and outside a cluster the kubeconfig file.
    """

    def __init__(self, configuration: "Configuration | None" = None) -> None:
        self._configuration = configuration
        self._client: ApiClient | None = None
        self._discovery: DiscoveryV1Api | None = None
        self._is_closed = False

    async def list(self, selector: SliceSelector) -> tuple[Sequence[Slice], str]:
        """The slices now, and the version to watch from."""
        api = await self._api()
        async with _answer(
            api.list_namespaced_endpoint_slice_without_preload_content(
                selector.namespace,
                label_selector=_label(selector),
                _request_timeout=REQUEST_TIMEOUT_S,
            )
        ) as response:
            found = json.loads(await response.read())
        return cast("Sequence[Slice]", found["items"]), found["metadata"]["resourceVersion"]

    async def watch(self, selector: SliceSelector, version: str) -> AsyncIterator[Event]:
        """Changes since `version`, for about four minutes."""
        api = await self._api()
        async with _answer(
            api.list_namespaced_endpoint_slice_without_preload_content(
                selector.namespace,
                label_selector=_label(selector),
                resource_version=version,
                watch=True,
                allow_watch_bookmarks=True,
                timeout_seconds=WATCH_S,
                _request_timeout=WATCH_S + REQUEST_TIMEOUT_S,
            )
        ) as response:
            async for line in _lines(response):
                yield _event(line)

    async def aclose(self) -> None:
        """Close the connections; running calls fail with `Unavailable`."""
        self._is_closed = True
        if self._client is not None:
            await self._client.close()

    async def _api(self) -> "DiscoveryV1Api":
        if self._is_closed:
            raise Unavailable("The connection to the API server is closed.")
        if self._discovery is None:
            make_client, make_api = await asyncio.to_thread(_load)
            self._client = make_client(self._configuration or await find_configuration(_OTHERWISE))
            self._discovery = make_api(self._client)
        return self._discovery


def watch_slices(selector: SliceSelector) -> SliceDiscovery:
    """The discovery of a Service of the cluster this process runs in, or of the kubeconfig's."""
    return SliceDiscovery(selector, KubernetesApi())


def _load() -> "tuple[type[ApiClient], type[DiscoveryV1Api]]":
    from kubernetes.aio import client

    return client.ApiClient, client.DiscoveryV1Api


async def find_configuration(otherwise: str) -> "Configuration":
    """Return how to reach the API server: the pod's service account, else the kubeconfig file.

    Raises FailedPrecondition that ends with `otherwise`, what to do where neither is.
    """
    from kubernetes.aio import client, config

    configuration = client.Configuration()
    try:
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            await config.load_kube_config(client_configuration=configuration)
    except (config.ConfigException, OSError) as error:
        raise FailedPrecondition(
            f"No Kubernetes API server is known ({error}); run in a pod with a service account, "
            f"provide a kubeconfig, or {otherwise}."
        ) from error
    return configuration


@asynccontextmanager
async def _answer(call: "Awaitable[ClientResponse]") -> "AsyncIterator[ClientResponse]":
    """The response of a call, its failures turned into ours."""
    from aiohttp import ClientError
    from kubernetes.aio.client import ApiException

    try:
        response = await call
        try:
            if response.status == _GONE:
                raise VersionExpired("The API server no longer knows this version.")
            if response.status != _OK:
                raise Unavailable(f"The API server answered {response.status}.")
            yield response
        finally:
            response.close()
    except (ApiException, ClientError, OSError, TimeoutError) as error:
        raise Unavailable(f"The API server cannot be asked: {error}") from error
    except (ValueError, KeyError) as error:
        raise Unavailable(f"The API server answered what is no EndpointSlice: {error}") from error


async def _lines(response: "ClientResponse") -> AsyncIterator[bytes]:
    """Lines of a response of any length up to a bound."""
    pending = b""
    async for part in response.content.iter_any():
        *lines, pending = (pending + part).split(b"\n")
        if len(pending) > MAX_LINE_BYTES:
            raise Unavailable(f"The API server sent a line beyond {MAX_LINE_BYTES} bytes.")
        for line in lines:
            if line.strip():
                yield line


def _event(line: bytes) -> Event:
    event = json.loads(line)
    if event["type"] == "ERROR":
        status = event["object"]
        if status.get("code") == _GONE:
            raise VersionExpired("The API server no longer knows this version.")
        raise Unavailable(f"The API server ended the watch: {status.get('message')}")
    return Event(event["type"], cast("Slice", event["object"]))


def _label(selector: SliceSelector) -> str:
    return f"kubernetes.io/service-name={selector.service}"
