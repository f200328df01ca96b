"""`DistillerService`: orders and runs between protobuf and the book."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import grpc.aio

from services.distiller.runs import Order, Run, RunBook, Stage
from understudy.api.distiller.v1 import distiller_pb2, distiller_pb2_grpc
from understudy.errors import InvalidArgument

SERVICE: Final = distiller_pb2.DESCRIPTOR.services_by_name["DistillerService"].full_name
CALLERS: Final = ("caller",)
"""Components that may call, as in deploy/telemetry/schema.yaml."""
WATCH: Final = f"/{SERVICE}/Watch"

_STAGES: Final[dict[distiller_pb2.Stage.ValueType, Stage]] = {
    distiller_pb2.STAGE_ADAPTER: "adapter",
    distiller_pb2.STAGE_LABEL: "label",
    distiller_pb2.STAGE_SLM: "slm",
    distiller_pb2.STAGE_CALIBRATE: "calibrate",
}
_NUMBERS: Final = {stage: number for number, stage in _STAGES.items()}
_STATES: Final = {
    "queued": distiller_pb2.RUN_STATE_QUEUED,
    "running": distiller_pb2.RUN_STATE_RUNNING,
    "done": distiller_pb2.RUN_STATE_DONE,
    "failed": distiller_pb2.RUN_STATE_FAILED,
}


class DistillerServicer(distiller_pb2_grpc.DistillerServiceServicer):
    """Serves operators and the CLI."""

    def __init__(self, book: RunBook) -> None:
        self._book = book

    def register(self, server: grpc.aio.Server) -> None:
        """Add this service to a server."""
        distiller_pb2_grpc.add_DistillerServiceServicer_to_server(self, server)

    async def Submit(  # noqa: N802
        self,
        request: distiller_pb2.SubmitRequest,
        context: object,  # noqa: ARG002
    ) -> distiller_pb2.SubmitResponse:
        """Queue a run."""
        run = await self._book.submit(_order(request))
        return distiller_pb2.SubmitResponse(run=_to_proto(run))

    async def Watch(  # noqa: N802
        self,
        request: distiller_pb2.WatchRequest,
        context: object,  # noqa: ARG002
    ) -> AsyncIterator[distiller_pb2.WatchResponse]:
        """Stream a run's progress until it ends."""
        async for run in self._book.watch(request.run_id):
            yield distiller_pb2.WatchResponse(run=_to_proto(run))

    async def List(  # noqa: N802
        self,
        request: distiller_pb2.ListRequest,  # noqa: ARG002
        context: object,  # noqa: ARG002
    ) -> distiller_pb2.ListResponse:
        """List runs, newest first."""
        return distiller_pb2.ListResponse(runs=[_to_proto(run) for run in self._book.listed()])


def _order(request: distiller_pb2.SubmitRequest) -> Order:
    stage = _STAGES.get(request.stage)
    if stage is None:
        raise InvalidArgument(
            f"The stage {request.stage} is not known; name adapter, label, slm or calibrate.",
            {"field": "stage"},
        )
    return Order(
        request.run_id,
        stage,
        request.steps if request.HasField("steps") else None,
        request.seed if request.HasField("seed") else None,
    )


def _to_proto(run: Run) -> distiller_pb2.Run:
    message = distiller_pb2.Run(
        run_id=run.order.run_id,
        stage=_NUMBERS[run.order.stage],
        state=_STATES[run.state],
        step=run.step,
        num_steps=run.num_steps,
        loss=run.loss,
        error=run.error,
    )
    message.create_time.FromNanoseconds(int(run.created_s * 1e9))
    return message
