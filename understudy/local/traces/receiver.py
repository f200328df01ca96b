"""The OTLP/gRPC service of the trace store: exports in, spans out to SQLite."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import grpc.aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    DESCRIPTOR,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from understudy.local.traces.otlp import spans_from
from understudy.local.traces.store import TraceStore

SERVICE: Final = DESCRIPTOR.services_by_name["TraceService"].full_name


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Stores exported spans; an export is answered once its spans are on disk."""

    def __init__(self, store: TraceStore) -> None:
        self._store = store
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="trace-store")

    async def Export(  # noqa: N802
        self,
        request: ExportTraceServiceRequest,
        context: object,  # noqa: ARG002
    ) -> ExportTraceServiceResponse:
        """Store the spans of one export."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writer, self._write, request)
        return ExportTraceServiceResponse()

    def register(self, server: grpc.aio.Server) -> None:
        """Add the receiver to a server."""
        add = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
        add(self, server)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Finish what is being written."""
        self._writer.shutdown()

    def _write(self, request: ExportTraceServiceRequest) -> None:
        self._store.add(spans_from(request))
