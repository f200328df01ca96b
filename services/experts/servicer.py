"""gRPC to expert worker: Hello and Drain as protobuf, Exchange as raw AFD frames."""

import asyncio
import logging
from contextlib import suppress
from typing import Final

import grpc
import grpc.aio

from services.experts.outbox import Outbox
from services.experts.pair import Pair
from services.experts.worker import ExpertWorker
from understudy.api.experts.v1 import experts_pb2, experts_pb2_grpc
from understudy.errors import FailedPrecondition, InvalidArgument
from understudy.exchange.frame import MAX_FRAME_BYTES, VERSION
from understudy.rpc import to_seconds

log = logging.getLogger(__name__)

SERVICE: Final = "understudy.api.experts.v1.ExpertsService"
CALLERS: Final = ("attention", "controller")
"""Components that may call, as in deploy/telemetry/schema.yaml."""
EXCHANGE: Final = f"/{SERVICE}/Exchange"
MAX_DRAIN_S: Final = 600.0
READ_AHEAD: Final = 2
"""Answers per credit that may wait for a peer that sends and does not read."""


class ExpertsServicer(experts_pb2_grpc.ExpertsServiceServicer):
    """Serves attention workers and controllers."""

    def __init__(self, worker: ExpertWorker) -> None:
        self._worker = worker
        self._outboxes: set[Outbox] = set()

    def register(self, server: grpc.aio.Server) -> None:
        """Add the protobuf methods and the raw stream to a server."""
        experts_pb2_grpc.add_ExpertsServiceServicer_to_server(self, server)
        handler = grpc.stream_stream_rpc_method_handler(self.exchange)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Exchange": handler}),)
        )

    async def Hello(  # noqa: N802
        self,
        request: experts_pb2.HelloRequest,
        context: object,  # noqa: ARG002
    ) -> experts_pb2.HelloResponse:
        """State what this worker holds; an empty digest asks without claiming a model."""
        holdings = self._worker.holdings
        if request.frame_version != VERSION:
            raise FailedPrecondition(
                f"The caller speaks frame version {request.frame_version}, this worker {VERSION}; "
                "run one release on both."
            )
        if request.ffn_digest and request.ffn_digest != holdings.digest:
            raise FailedPrecondition(
                f"The caller runs the model {request.ffn_digest.hex()[:12]}, this worker "
                f"{holdings.digest.hex()[:12]}; give both the same weights."
            )
        return experts_pb2.HelloResponse(
            frame_version=VERSION,
            ffn_digest=holdings.digest,
            first_layer=holdings.layers.start,
            num_layers=len(holdings.layers),
            expert_ids=holdings.expert_ids,
            credits=self._worker.num_credits,
            max_frame_bytes=MAX_FRAME_BYTES,
            hidden_size=holdings.config.hidden_size,
        )

    async def Drain(  # noqa: N802
        self,
        request: experts_pb2.DrainRequest,
        context: object,  # noqa: ARG002
    ) -> experts_pb2.DrainResponse:
        """Refuse new frames; wait until the answers to the others are written, or for `grace`."""
        grace_s = to_seconds(request.grace)
        if not 0 <= grace_s <= MAX_DRAIN_S:
            raise InvalidArgument(
                f"The grace of {grace_s:g} s is not within 0 to {MAX_DRAIN_S:g}.",
                {"field": "grace"},
            )
        await self.drain(grace_s)
        num_unwritten = sum(outbox.num_waiting for outbox in self._outboxes)
        return experts_pb2.DrainResponse(num_unanswered=self._worker.num_unanswered + num_unwritten)

    async def drain(self, grace_s: float) -> None:
        """Do what Drain does; the chassis calls it on SIGTERM."""
        self._worker.drain()
        end_s = asyncio.get_running_loop().time() + grace_s
        await asyncio.to_thread(self._worker.wait_answered, grace_s)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(end_s):
                for outbox in tuple(self._outboxes):
                    await outbox.wait_empty()
        self._worker.end_all_traces()

    async def exchange(
        self,
        requests: object,  # noqa: ARG002 - frames are read from the context, one hop less each
        context: grpc.aio.ServicerContext,  # type: ignore[type-arg]
    ) -> None:
        """Serve one attention worker until it closes the stream."""
        outbox = Outbox(READ_AHEAD * self._worker.num_credits)
        self._outboxes.add(outbox)
        pair = Pair(self._worker, outbox.send)
        writer = asyncio.create_task(outbox.write_to(context.write))
        try:
            while isinstance(message := await context.read(), bytes):  # the end is not bytes
                pair.receive(message)
                await outbox.wait_for_room()
        finally:
            writer.cancel()
            outbox.close()
            self._outboxes.discard(outbox)
