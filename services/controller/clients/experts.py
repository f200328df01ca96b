"""Asks expert workers what they hold and whether they serve."""

from contextlib import AsyncExitStack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.controller.placement import Holding
from understudy.api.experts.v1 import experts_pb2, experts_pb2_grpc
from understudy.errors import FailedPrecondition
from understudy.exchange.frame import VERSION
from understudy.rpc import WITHOUT_POLICY, Peer, from_rpc_error, open_channel


class GrpcProber:
    """A `Prober` over one channel per expert worker."""

    def __init__(self, timeout_s: float, peer: Peer | None = None) -> None:
        self._timeout_s = timeout_s
        self._peer = peer
        self._channels: dict[str, tuple[grpc.aio.Channel, AsyncExitStack]] = {}

    async def probe(self, address: str) -> Holding | None:
        """Return what the worker holds, None while it is not SERVING.

        Raises Unavailable or DeadlineExceeded when it does not answer, and FailedPrecondition when
        it speaks another frame version.
        """
        channel = await self._channel(address)
        try:
            check = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=self._timeout_s
            )
            if (await check).status != health_pb2.HealthCheckResponse.SERVING:
                return None
            # No digest: the controller holds no weights and only asks.
            hello = await experts_pb2_grpc.ExpertsServiceStub(channel).Hello(
                experts_pb2.HelloRequest(frame_version=VERSION), timeout=self._timeout_s
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        if not hello.num_layers or not hello.expert_ids:
            raise FailedPrecondition(f"The expert worker at {address} holds nothing.")
        return Holding(
            address,
            hello.ffn_digest,
            range(hello.first_layer, hello.first_layer + hello.num_layers),
            tuple(hello.expert_ids),
        )

    async def forget(self, address: str) -> None:
        """Hang up on one worker."""
        if address in self._channels:
            _, stack = self._channels.pop(address)
            await stack.aclose()

    async def aclose(self) -> None:
        """Hang up."""
        for address in tuple(self._channels):
            await self.forget(address)

    async def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            stack = AsyncExitStack()
            channel = await stack.enter_async_context(
                open_channel(address, options=WITHOUT_POLICY, peer=self._peer)
            )
            self._channels[address] = channel, stack
        return self._channels[address][0]
