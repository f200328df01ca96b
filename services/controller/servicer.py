"""`ControllerService`: tables as protobuf streams, and what routers hold for pools that sleep."""

from collections.abc import AsyncIterator, Mapping
from typing import Final, Protocol

import grpc.aio
from google.protobuf.duration_pb2 import Duration

from services.controller.loop import Outlook
from services.controller.metrics import ControllerMetrics
from services.controller.placement import Table
from services.controller.tables import Tables
from understudy.api.controller.v1 import controller_pb2, controller_pb2_grpc
from understudy.errors import InvalidArgument, Unavailable

SERVICE: Final = controller_pb2.DESCRIPTOR.services_by_name["ControllerService"].full_name
CALLERS: Final = ("attention", "router")
"""Components that may call, as in deploy/telemetry/schema.yaml."""
WATCH: Final = f"/{SERVICE}/WatchPlacement"


MAX_ROUTER_CHARS: Final = 253
MAX_HELD: Final = 64


class Sizing(Protocol):
    """Sizes pools."""

    def report(self, router: str, held: Mapping[str, int]) -> Mapping[str, Outlook]:
        """Take what a router holds. Raises Unavailable while another controller leads."""
        ...


class ControllerServicer(controller_pb2_grpc.ControllerServiceServicer):
    """Serves attention workers and routers."""

    def __init__(
        self, tables: Tables, metrics: ControllerMetrics, sizing: Sizing | None = None
    ) -> None:
        """Without `sizing` nothing is scaled."""
        self._tables = tables
        self._metrics = metrics
        self._sizing = sizing

    def register(self, server: grpc.aio.Server) -> None:
        """Add this service to a server."""
        controller_pb2_grpc.add_ControllerServiceServicer_to_server(self, server)

    async def WatchPlacement(  # noqa: N802
        self,
        request: controller_pb2.WatchPlacementRequest,
        context: object,  # noqa: ARG002
    ) -> AsyncIterator[controller_pb2.WatchPlacementResponse]:
        """Stream the pool's table as soon as there is one, then each newer one."""
        with self._metrics.watchers.track_inprogress():
            async for table in self._tables.watch(request.pool):
                yield controller_pb2.WatchPlacementResponse(placement=_to_proto(table))

    async def Report(  # noqa: N802
        self,
        request: controller_pb2.ReportRequest,
        context: object,  # noqa: ARG002
    ) -> controller_pb2.ReportResponse:
        """Take what a router holds, answer what becomes of the pools."""
        if not 1 <= len(request.router) <= MAX_ROUTER_CHARS:
            raise InvalidArgument(
                f"router has {len(request.router)} characters; give 1 to {MAX_ROUTER_CHARS}.",
                {"field": "router"},
            )
        if len(request.held) > MAX_HELD or not all(one.pool for one in request.held):
            raise InvalidArgument(
                f"held has {len(request.held)} entries; give at most {MAX_HELD}, each with a pool.",
                {"field": "held"},
            )
        if self._sizing is None:
            raise Unavailable("This controller scales nothing; set UNDERSTUDY_SCALING_RULES.")
        held = {one.pool: one.num_requests for one in request.held}
        outlooks = self._sizing.report(request.router, held)
        return controller_pb2.ReportResponse(
            pools=[_outlook(pool, found) for pool, found in outlooks.items()]
        )


def _outlook(pool: str, found: Outlook) -> controller_pb2.PoolOutlook:
    start = Duration()
    start.FromNanoseconds(round(found.start_s * 1e9))
    return controller_pb2.PoolOutlook(
        pool=pool,
        num_replicas=found.replicas,
        num_ready=found.ready,
        reason=found.reason,
        start_time=start,
    )


def _to_proto(table: Table) -> controller_pb2.Placement:
    return controller_pb2.Placement(
        pool=table.pool,
        epoch=table.epoch,
        replicas=[
            controller_pb2.ExpertReplica(
                address=share.holding.address,
                first_layer=share.holding.layers.start,
                num_layers=len(share.holding.layers),
                expert_ids=share.holding.expert_ids,
                preferred_expert_ids=share.preferred_expert_ids,
            )
            for share in table.shares
        ],
    )
