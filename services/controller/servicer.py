"""`ControllerService`: tables as protobuf streams."""

from collections.abc import AsyncIterator
from typing import Final

import grpc.aio

from services.controller.metrics import ControllerMetrics
from services.controller.placement import Table
from services.controller.tables import Tables
from understudy.api.controller.v1 import controller_pb2, controller_pb2_grpc

SERVICE: Final = controller_pb2.DESCRIPTOR.services_by_name["ControllerService"].full_name
WATCH: Final = f"/{SERVICE}/WatchPlacement"


class ControllerServicer(controller_pb2_grpc.ControllerServiceServicer):
    """Serves attention workers."""

    def __init__(self, tables: Tables, metrics: ControllerMetrics) -> None:
        self._tables = tables
        self._metrics = metrics

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
