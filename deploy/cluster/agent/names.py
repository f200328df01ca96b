"""Cluster DNS: answers for Services and for pods behind headless ones, from what is watched.

UDP, A records. Other types of a known name are empty answers, unknown names do not exist, so that a
search list moves on at once.
"""

import asyncio
import ipaddress
import struct
from collections.abc import Callable, Iterable
from typing import Final, cast

from deploy.cluster.agent.api import Json
from deploy.cluster.layout import DOMAIN

TTL_S: Final = 1
_HEADER: Final = struct.Struct("!6H")
_ANSWER_FLAGS: Final = 0x8580
_NO_SUCH_NAME: Final = 3
_A: Final = 1
_INTERNET: Final = 1
_MAX_ANSWERS: Final = 28
"""As many A records as fit a datagram of 512 bytes."""

Resolve = Callable[[str], list[str] | None]


def endpoints(slices: Iterable[Json], *, with_unready: bool) -> list[Json]:
    """Return the endpoints that take traffic."""
    found = [item for part in slices for item in part.get("endpoints") or []]
    if with_unready:
        return found
    return [item for item in found if item.get("conditions", {}).get("ready", True)]


def addresses(service: Json, slices: Iterable[Json], host: str) -> list[str] | None:
    """Return the addresses of a Service, or of one host of a headless one; None where none is."""
    spec = service["spec"]
    if spec.get("clusterIP", "None") != "None":
        return None if host else [spec["clusterIP"]]
    chosen = endpoints(slices, with_unready=spec.get("publishNotReadyAddresses", False))
    if host:
        chosen = [item for item in chosen if item.get("hostname") == host]
        if not chosen:
            return None
    return sorted({address for item in chosen for address in item["addresses"]})


def split(name: str) -> tuple[str, str, str] | None:
    """Return host, Service and namespace of a name in the cluster's domain."""
    suffix = f".svc.{DOMAIN}"
    if not name.endswith(suffix):
        return None
    labels = name[: -len(suffix)].split(".")
    match labels:
        case [service, namespace]:
            return "", service, namespace
        case [host, service, namespace]:
            return host, service, namespace
    return None


def answer(query: bytes, resolve: Resolve) -> bytes | None:
    """Return the answer to a query, or None for what is no query."""
    if len(query) < _HEADER.size:
        return None
    identity, flags, questions, *_ = _HEADER.unpack_from(query)
    if flags & 0x8000 or questions != 1:
        return None
    end = _HEADER.size
    labels = []
    while end < len(query) and query[end]:
        size = query[end]
        labels.append(query[end + 1 : end + 1 + size])
        end += 1 + size
    end += 1
    if end + 4 > len(query):
        return None
    name = b".".join(labels).decode("ascii", "replace").lower()
    kind, _ = struct.unpack_from("!HH", query, end)
    found = resolve(name)
    records = found[:_MAX_ANSWERS] if found and kind == _A else []
    code = 0 if found is not None else _NO_SUCH_NAME
    parts = [_HEADER.pack(identity, _ANSWER_FLAGS | code, 1, len(records), 0, 0)]
    parts.append(query[_HEADER.size : end + 4])
    for address in records:
        head = struct.pack("!HHHIH", 0xC000 | _HEADER.size, _A, _INTERNET, TTL_S, 4)
        parts.append(head + ipaddress.IPv4Address(address).packed)
    return b"".join(parts)


class NameServer(asyncio.DatagramProtocol):
    """Answers queries on one socket."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the socket."""
        # asyncio's own transport of a datagram socket is not declared as one.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer one query."""
        reply = answer(data, self._resolve)
        if reply is not None and self._transport is not None:
            self._transport.sendto(reply, addr)
