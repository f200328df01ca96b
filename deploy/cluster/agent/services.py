"""Services: every ClusterIP is bound here, and connections go to ready endpoints in turn."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from deploy.cluster.agent import names
from deploy.cluster.agent.api import Cache, Json
from deploy.cluster.layout import DNS_SERVICE

CHUNK_BYTES: Final = 1 << 16
CONNECT_TIMEOUT_S: Final = 5.0
SERVICE_LABEL: Final = "kubernetes.io/service-name"

Place = tuple[str, int]


class Services:
    """Names and addresses of all Services."""

    def __init__(self, services: Cache, slices: Cache) -> None:
        self._services, self._slices = services, slices
        self._proxies: dict[Place, Proxy] = {}
        self._is_changed = asyncio.Event()
        services.listen(lambda *_: self._is_changed.set())

    async def run(self) -> None:
        """Keep one listener for each port of each ClusterIP, for ever."""
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(
            lambda: names.NameServer(self.resolve), local_addr=(DNS_SERVICE, 53)
        )
        while True:
            self._is_changed.clear()
            wanted = dict(_places(self._services.values()))
            for place in self._proxies.keys() - wanted.keys():
                await self._proxies.pop(place).close()
            for place, (service, port) in wanted.items():
                proxy = self._proxies.get(place)
                if proxy is None:
                    proxy = self._proxies[place] = Proxy()
                    await proxy.listen(place)
                proxy.backends = self._chooser(service, port)
            await self._is_changed.wait()

    def of(self, namespace: str) -> list[Json]:
        """Return the Services of a namespace."""
        found = self._services.values()
        return [item for item in found if item["metadata"]["namespace"] == namespace]

    def resolve(self, name: str) -> list[str] | None:
        """Return the addresses of a name, or None where it does not exist."""
        parts = names.split(name)
        service = parts and self._services.get(parts[2], parts[1])
        if not parts or not service:
            return None
        return names.addresses(service, self._slices_of(service), parts[0])

    def _slices_of(self, service: Json) -> list[Json]:
        namespace, name = service["metadata"]["namespace"], service["metadata"]["name"]
        return [
            item
            for item in self._slices.values()
            if item["metadata"]["namespace"] == namespace
            and item["metadata"].get("labels", {}).get(SERVICE_LABEL) == name
        ]

    def _chooser(self, service: Json, port: Json) -> "Backends":
        with_unready = service["spec"].get("publishNotReadyAddresses", False)

        def backends() -> list[Place]:
            places = []
            for part in self._slices_of(service):
                number = port_number(part, port)
                chosen = names.endpoints([part], with_unready=with_unready)
                if number:
                    places += [(item["addresses"][0], number) for item in chosen]
            return sorted(set(places))

        return backends


Backends = Callable[[], list[Place]]


def port_number(part: Json, port: Json) -> int:
    """Return the number that a Service's port has in a slice; 0 where it is not in there."""
    found = [
        item for item in part.get("ports") or [] if item.get("name", "") == port.get("name", "")
    ]
    return int(found[0]["port"]) if found else 0


def _places(services: list[Json]) -> Iterator[tuple[Place, tuple[Json, Json]]]:
    for service in services:
        address = service["spec"].get("clusterIP", "None")
        if address in ("None", "", DNS_SERVICE):
            continue
        for port in service["spec"].get("ports", []):
            if port.get("protocol", "TCP") == "TCP":
                yield (address, int(port["port"])), (service, port)


class Proxy:
    """Carries connections of one ClusterIP's port to endpoints."""

    def __init__(self) -> None:
        self.backends: Backends = list
        self._server: asyncio.Server | None = None
        self._turn = itertools.count()

    async def listen(self, place: Place) -> None:
        """Take connections."""
        self._server = await asyncio.start_server(self._carry, place[0], place[1])

    async def close(self) -> None:
        """Take no more connections; those that are open go on."""
        assert self._server is not None
        self._server.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far = await self._connect()
        if far is None:
            writer.transport.abort()
            return
        far_reader, far_writer = far
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_pump(reader, far_writer))
                tasks.create_task(_pump(far_reader, writer))
        except* OSError:
            far_writer.transport.abort()
            writer.transport.abort()
        finally:
            far_writer.close()
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        places = self.backends()
        first = next(self._turn)
        for index in range(len(places)):
            address, port = places[(first + index) % len(places)]
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    return await asyncio.open_connection(address, port)
        return None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
