"""Narrows a discovery to the peers whose gRPC health says SERVING.

A peer that drains leaves at once, long before a platform notices; one that comes back returns. A
peer that implements no health service is taken as healthy, as gRPC itself does.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from understudy.discovery.endpoints import Discovery, Endpoint, Endpoints
from understudy.rpc import WITHOUT_POLICY, Peer, open_channel

RETRY_S: Final = 1.0
VERDICT_TIMEOUT_S: Final = 5.0
_SERVING: Final = 1


async def watch_healthy(
    discovery: Discovery, *, retry_s: float = RETRY_S, security: Peer | None = None
) -> AsyncIterator[Endpoints]:
    """The healthy peers, first when each has been asked once, then at each change.

    Close the iterator to stop asking. `retry_s` is the pause before a lost peer is asked again;
    `security` says how TLS is spoken with peers, plaintext without it.
    """
    view = _View(retry_s, security)
    following = asyncio.create_task(view.follow(discovery))
    last: Endpoints | None = None
    try:
        while True:
            await view.changed.wait()
            view.changed.clear()
            if following.done():
                following.result()
            healthy = view.healthy()
            if healthy is not None and healthy != last:
                last = healthy
                yield healthy
    finally:
        await _end(following, *view.probes.values())


class _View:
    """What is known of each peer's health."""

    def __init__(self, retry_s: float, security: Peer | None) -> None:
        self.changed = asyncio.Event()
        self.probes: dict[Endpoint, asyncio.Task[None]] = {}
        self._verdicts: dict[Endpoint, bool] = {}
        self._is_known = False
        self._retry_s = retry_s
        self._security = security

    def healthy(self) -> Endpoints | None:
        """The healthy peers, None before every peer has a verdict."""
        if not self._is_known or self.probes.keys() != self._verdicts.keys():
            return None
        return frozenset(peer for peer, is_healthy in self._verdicts.items() if is_healthy)

    async def follow(self, discovery: Discovery) -> None:
        """Keep one probe per peer."""
        try:
            async for endpoints in discovery.watch():
                gone = self.probes.keys() - endpoints
                await _end(*(self.probes.pop(peer) for peer in gone))
                for peer in gone:
                    self._verdicts.pop(peer, None)
                for peer in endpoints - self.probes.keys():
                    self.probes[peer] = asyncio.create_task(self._probe(peer))
                self._is_known = True
                self.changed.set()
        finally:
            self.changed.set()

    async def _probe(self, peer: Endpoint) -> None:
        while True:
            async with open_channel(
                peer.address, options=WITHOUT_POLICY, peer=self._security
            ) as channel:
                await self._ask(peer, channel)
            await asyncio.sleep(self._retry_s)

    async def _ask(self, peer: Endpoint, channel: grpc.aio.Channel) -> None:
        """Follow one watch of a peer's health to its end."""
        call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        is_healthy = False
        try:
            statuses = aiter(call)
            async with asyncio.timeout(VERDICT_TIMEOUT_S):
                first = await anext(statuses)
            self._judge(peer, is_healthy=first.status == _SERVING)
            async for answer in statuses:
                self._judge(peer, is_healthy=answer.status == _SERVING)
        except grpc.aio.AioRpcError as error:
            is_healthy = error.code() is grpc.StatusCode.UNIMPLEMENTED
        except (TimeoutError, StopAsyncIteration):
            call.cancel()
        self._judge(peer, is_healthy=is_healthy)

    def _judge(self, peer: Endpoint, *, is_healthy: bool) -> None:
        if self._verdicts.get(peer) is not is_healthy:
            self._verdicts[peer] = is_healthy
            self.changed.set()


async def _end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
