"""Watches the EndpointSlices of a Kubernetes Service.

Lists, then watches from the listed version; an expired version means a new list, a lost API server
means waiting while the last known peers stand. Peers that are not ready or terminate are left out.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypedDict

from understudy.discovery.endpoints import Endpoint, Endpoints
from understudy.errors import Unavailable

MAX_BACKOFF_S: Final = 30.0
_log = logging.getLogger(__name__)


class Metadata(TypedDict, total=False):
    """`metadata` of an object."""

    name: str
    resourceVersion: str


class Conditions(TypedDict, total=False):
    """`conditions` of an endpoint; absent or null means unknown, which counts as ready."""

    ready: bool | None
    terminating: bool | None


class SliceEndpoint(TypedDict, total=False):
    """One endpoint of a slice; all its addresses are the same peer."""

    addresses: list[str]
    conditions: Conditions


class SlicePort(TypedDict, total=False):
    """One port of a slice."""

    name: str
    port: int


class Slice(TypedDict, total=False):
    """The part of a `discovery.k8s.io/v1` EndpointSlice that matters here."""

    metadata: Metadata
    addressType: str
    endpoints: list[SliceEndpoint] | None
    ports: list[SlicePort] | None


@dataclass(frozen=True, slots=True)
class Event:
    """One change that a watch reports."""

    kind: str
    """ADDED, MODIFIED, DELETED or BOOKMARK."""
    slice: Slice
    """The slice after the change."""


@dataclass(frozen=True, slots=True)
class SliceSelector:
    """Which slices, and which of their ports."""

    namespace: str
    """Namespace of the Service."""
    service: str
    """Name of the Service."""
    port_name: str
    """Name of the port."""


class VersionExpired(Unavailable):
    """The API server no longer knows the version to watch from: list again."""


class SliceSource(Protocol):
    """An API server. Both calls raise `Unavailable`, a watch also `VersionExpired`."""

    async def list(self, selector: SliceSelector) -> tuple[Sequence[Slice], str]:
        """The slices now, and the version to watch from."""

    def watch(self, selector: SliceSelector, version: str) -> AsyncIterator[Event]:
        """Changes since `version`; ends now and then, as watches do."""

    async def aclose(self) -> None:
        """Release connections."""


class SliceDiscovery:
    """The ready endpoints of one Service."""

    def __init__(
        self, selector: SliceSelector, source: SliceSource, *, first_backoff_s: float = 0.5
    ) -> None:
        self._selector = selector
        self._source = source
        self._first_backoff_s = first_backoff_s
        self._closed = asyncio.Event()
        self._waiting: set[asyncio.Future[Iterable[Slice]]] = set()

    async def watch(self) -> AsyncIterator[Endpoints]:
        """The ready endpoints, and all of them again at each change."""
        last: Endpoints | None = None
        backoff_s = self._first_backoff_s
        while not self._closed.is_set():
            try:
                async for slices in self._until_closed(self._snapshots()):
                    backoff_s = self._first_backoff_s
                    endpoints = endpoints_of(slices, self._selector.port_name)
                    if endpoints != last:
                        last = endpoints
                        yield endpoints
            except VersionExpired:
                await self._pause(self._first_backoff_s)
            except Unavailable as error:
                _log.warning(
                    "The API server is away; the last known peers stand.",
                    extra={"service_name": self._selector.service, "cause": error.message},
                )
                await self._pause(backoff_s)
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)

    async def aclose(self) -> None:
        """End running watches and close the connections."""
        self._closed.set()
        for waiting in self._waiting:
            waiting.cancel()
        await asyncio.gather(*self._waiting, return_exceptions=True)
        await self._source.aclose()

    async def _until_closed(
        self, snapshots: AsyncIterator[Iterable[Slice]]
    ) -> AsyncIterator[Iterable[Slice]]:
        """The same snapshots; ends when `aclose` cancels the wait for the next one."""
        while not self._closed.is_set():
            waiting = asyncio.ensure_future(anext(snapshots))
            self._waiting.add(waiting)
            try:
                snapshot = await waiting
            except StopAsyncIteration:
                return
            except asyncio.CancelledError:
                if self._closed.is_set():
                    return
                raise
            finally:
                self._waiting.discard(waiting)
            yield snapshot

    async def _snapshots(self) -> AsyncIterator[Iterable[Slice]]:
        """The slices after the list and after each event, watches being renewed as they end."""
        listed, version = await self._source.list(self._selector)
        slices = {_name(one): one for one in listed}
        yield slices.values()
        while not self._closed.is_set():
            async for event in self._source.watch(self._selector, version):
                version = event.slice.get("metadata", {}).get("resourceVersion", version)
                if event.kind == "DELETED":
                    slices.pop(_name(event.slice), None)
                elif event.kind in ("ADDED", "MODIFIED"):
                    slices[_name(event.slice)] = event.slice
                yield slices.values()
            await self._pause(self._first_backoff_s)

    async def _pause(self, seconds: float) -> None:
        """Wait about `seconds`, so that many watchers do not return at the same instant."""
        jitter = random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, guards nothing
        try:
            async with asyncio.timeout(seconds * jitter):
                await self._closed.wait()
        except TimeoutError:
            return


def endpoints_of(slices: Iterable[Slice], port_name: str) -> Endpoints:
    """The ready endpoints of the slices on the port of this name."""
    return frozenset(
        Endpoint(f"{_host(one, endpoint)}:{port}")
        for one in slices
        for port in _ports(one, port_name)
        for endpoint in one.get("endpoints") or ()
        if _is_ready(endpoint.get("conditions") or {}) and endpoint.get("addresses")
    )


def _ports(one: Slice, port_name: str) -> Iterable[int]:
    ports = one.get("ports") or ()
    return (port["port"] for port in ports if port.get("name") == port_name and "port" in port)


def _is_ready(conditions: Conditions) -> bool:
    return conditions.get("ready") is not False and conditions.get("terminating") is not True


def _host(one: Slice, endpoint: SliceEndpoint) -> str:
    address = endpoint["addresses"][0]
    return f"[{address}]" if one.get("addressType") == "IPv6" else address


def _name(one: Mapping[str, object] | Slice) -> str:
    metadata = one.get("metadata")
    return str(metadata.get("name", "")) if isinstance(metadata, dict) else ""
