"""`RouterService`: protobuf in, the conductor's events out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final, TypeAlias

import grpc

from services.router.conductor import Conductor
from services.router.wire import to_generate_response, to_model, to_request, to_resume_response
from understudy.api.router.v1 import router_pb2, router_pb2_grpc
from understudy.rpc import current_deadline, current_request_id
from understudy.rpc.metadata import AUTHORIZATION_KEY, find

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
SERVICE: Final = router_pb2.DESCRIPTOR.services_by_name["RouterService"].full_name


class RouterServicer(router_pb2_grpc.RouterServiceServicer):
    """Serves callers over gRPC."""

    def __init__(self, conductor: Conductor) -> None:
        self._conductor = conductor

    def register(self, server: grpc.aio.Server) -> None:
        """Add this service to a server."""
        router_pb2_grpc.add_RouterServiceServicer_to_server(self, server)

    async def Generate(  # noqa: N802
        self, request: router_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[router_pb2.GenerateResponse]:
        """Answer one request."""
        tenant = self._tenant(context)
        events = self._conductor.generate(
            to_request(request),
            tenant=tenant,
            request_id=current_request_id(),
            deadline=current_deadline(context),
        )
        async with aclosing(events):
            async for event in events:
                yield to_generate_response(event)

    async def Resume(  # noqa: N802
        self, request: router_pb2.ResumeRequest, context: Context
    ) -> AsyncIterator[router_pb2.ResumeResponse]:
        """Continue an answer from the journal."""
        events = self._conductor.resume(
            request.resume_token,
            request.received_deltas,
            tenant=self._tenant(context),
            deadline=current_deadline(context),
        )
        async with aclosing(events):
            async for event in events:
                yield to_resume_response(event)

    async def ListModels(  # noqa: N802
        self,
        request: router_pb2.ListModelsRequest,  # noqa: ARG002
        context: Context,
    ) -> router_pb2.ListModelsResponse:
        """List the models."""
        self._tenant(context)
        return router_pb2.ListModelsResponse(models=map(to_model, self._conductor.models()))

    def _tenant(self, context: Context) -> str:
        metadata = context.invocation_metadata() or ()
        return self._conductor.authenticate(find(metadata, AUTHORIZATION_KEY))
