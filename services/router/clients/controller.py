"""Tells the controller which requests wait for pools without workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import grpc

from services.router.holding import Outlook
from understudy.api.controller.v1 import controller_pb2, controller_pb2_grpc
from understudy.errors import DeadlineExceeded, Unavailable
from understudy.rpc import Peer, from_rpc_error, open_channel, to_seconds

TIMEOUT_S: Final = 2.0


class ControllerClient:
    """Reports to the controller that leads; satisfies `reporting.Controller`.

    Only one of several leads. An address may be a name of all of them, of which the channel tries
    one after the other; where addresses are listed, the one that answered last is asked first.
    """

    def __init__(self, addresses: Sequence[str], router: str, peer: Peer | None = None) -> None:
        """Connect lazily; `router` is unique among routers."""
        self._router = router
        self._channels = [open_channel(address, peer=peer) for address in addresses]
        self._stubs = [
            controller_pb2_grpc.ControllerServiceStub(channel) for channel in self._channels
        ]

    async def report(self, held: Mapping[str, int]) -> dict[str, Outlook]:
        """Report requests by pool, return what becomes of those pools that are sized.

        Raises Unavailable or DeadlineExceeded when no controller took the report, and what it
        refused it for.
        """
        request = controller_pb2.ReportRequest(
            router=self._router,
            held=[
                controller_pb2.HeldRequests(pool=pool, num_requests=count)
                for pool, count in held.items()
            ],
        )
        failure: Unavailable | DeadlineExceeded = Unavailable("No controller is known.")
        for stub in tuple(self._stubs):
            try:
                response = await stub.Report(request, timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                refused = from_rpc_error(error)
                if not isinstance(refused, Unavailable | DeadlineExceeded):
                    raise refused from error
                failure = refused
                self._stubs.append(self._stubs.pop(0))
            else:
                return {one.pool: _outlook(one) for one in response.pools}
        raise failure

    async def aclose(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            await channel.close(None)


def _outlook(pool: controller_pb2.PoolOutlook) -> Outlook:
    return Outlook(
        num_replicas=pool.num_replicas,
        num_ready=pool.num_ready,
        reason=pool.reason,
        start_s=to_seconds(pool.start_time),
    )
