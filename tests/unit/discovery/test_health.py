"""Only peers that say SERVING are told."""

import asyncio
from contextlib import aclosing

import grpc.aio
import pytest

from understudy.discovery import Endpoint, StaticDiscovery, watch_healthy
from understudy.serving import HealthState, ServingSettings, start_service


class ChangingDiscovery:
    """Tells what the test puts into its queue."""

    def __init__(self):
        self.snapshots = asyncio.Queue()

    async def watch(self):
        while True:
            yield await self.snapshots.get()

    async def aclose(self):
        pass


@pytest.fixture
async def start_peer():
    started = []

    async def start(is_ready=True):
        health = HealthState(is_ready)
        service = await start_service(
            "peer", lambda _: None, settings=ServingSettings(), services=[], health=health
        )
        started.append(service)
        return service, health

    yield start
    for service in started:
        await service.drain(0.0)


async def test_peers_come_and_go_with_their_health(start_peer):
    (one, one_health), (two, two_health) = await start_peer(), await start_peer(is_ready=False)
    addresses = [one.address, two.address]

    async with aclosing(watch_healthy(StaticDiscovery(addresses), retry_s=0.01)) as healthy:
        seen = [await anext(healthy)]
        two_health.mark_ready()
        seen.append(await anext(healthy))
        one_health.mark_unready("busy")
        seen.append(await anext(healthy))

    both = frozenset(Endpoint(address) for address in addresses)
    assert seen == [{Endpoint(one.address)}, both, {Endpoint(two.address)}]


async def test_draining_peer_leaves(start_peer):
    peer, _ = await start_peer()

    async with aclosing(watch_healthy(StaticDiscovery([peer.address]), retry_s=0.01)) as healthy:
        assert await anext(healthy) == {Endpoint(peer.address)}
        await peer.drain(5.0)
        assert await anext(healthy) == frozenset()


async def test_dead_peer_never_counts(start_peer):
    peer, _ = await start_peer()
    discovery = StaticDiscovery([peer.address, "127.0.0.1:9"])

    async with aclosing(watch_healthy(discovery, retry_s=0.01)) as healthy:
        assert await anext(healthy) == {Endpoint(peer.address)}


async def test_peer_without_a_health_service_counts_as_healthy():
    server = grpc.aio.server()
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()

    async with aclosing(watch_healthy(StaticDiscovery([address]), retry_s=0.01)) as healthy:
        assert await anext(healthy) == {Endpoint(address)}
    await server.stop(0)


async def test_peers_follow_the_discovery(start_peer):
    (one, _), (two, _) = await start_peer(), await start_peer()
    first, second = Endpoint(one.address), Endpoint(two.address)
    discovery = ChangingDiscovery()
    discovery.snapshots.put_nowait(frozenset([first]))

    async with aclosing(watch_healthy(discovery, retry_s=0.01)) as healthy:
        seen = [await anext(healthy)]
        for snapshot in (frozenset([first, second]), frozenset([second]), frozenset()):
            discovery.snapshots.put_nowait(snapshot)
            seen.append(await anext(healthy))

    assert seen == [{first}, {first, second}, {second}, frozenset()]


async def test_failed_discovery_is_raised():
    class Broken:
        async def watch(self):
            raise LookupError("no such service")
            yield

        async def aclose(self):
            pass

    with pytest.raises(LookupError):
        await anext(watch_healthy(Broken()))
