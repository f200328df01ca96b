"""A service on the chassis, in process, that fails on demand."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from understudy.api.distiller.v1 import distiller_pb2, distiller_pb2_grpc
from understudy.rpc import current_deadline, current_request_id, open_channel, traceparent
from understudy.serving import HealthState, RunningService, ServingSettings, start_service

SERVICE = "understudy.api.distiller.v1.DistillerService"
SUBMIT = f"/{SERVICE}/Submit"
WATCH = f"/{SERVICE}/Watch"
CHAT = "/understudy.test.Chat/Chat"


@dataclass
class Probe(distiller_pb2_grpc.DistillerServiceServicer):
    """Answers with what it sees, or raises what it is told to."""

    error: Exception | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """A watch sends one run, then waits for this."""
    started: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    messages: int = 0

    async def Submit(self, request, context):  # noqa: N802
        if self.error is not None:
            raise self.error
        if request.run_id == "wait":
            self.started.set()
            await self.gate.wait()
        run = distiller_pb2.Run(
            run_id=current_request_id(),
            error=traceparent(),
            loss=current_deadline(context).remaining_s,
        )
        return distiller_pb2.SubmitResponse(run=run)

    async def Watch(self, request, context):  # noqa: N802
        try:
            yield distiller_pb2.WatchResponse(run=distiller_pb2.Run(run_id=current_request_id()))
            self.started.set()
            if self.error is not None:
                raise self.error
            while request.run_id == "flood":
                self.messages += 1
                yield distiller_pb2.WatchResponse(run=distiller_pb2.Run(error="x" * 60_000))
            if request.run_id == "wait":
                await self.gate.wait()
            yield distiller_pb2.WatchResponse(run=distiller_pb2.Run(error=traceparent()))
        finally:
            self.closed.set()

    async def List(self, request, context):  # noqa: N802
        await context.abort(grpc.StatusCode.NOT_FOUND, "the servicer's own words")


async def chat(requests, context):
    async for request in requests:
        yield request


def add_chat(server: grpc.aio.Server) -> None:
    """A bidi stream without serializers, like the data plane's."""
    handler = grpc.stream_stream_rpc_method_handler(chat)
    handlers = grpc.method_handlers_generic_handler("understudy.test.Chat", {"Chat": handler})
    server.add_generic_rpc_handlers((handlers,))


@dataclass
class Running:
    """The probe, its service and a channel to it."""

    probe: Probe
    service: RunningService
    channel: grpc.aio.Channel
    stub: distiller_pb2_grpc.DistillerServiceStub
    registry: CollectorRegistry
    health: HealthState


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a probe service; everything is stopped after the test."""
    running: list[Running] = []

    async def start_probe(*, settings: ServingSettings | None = None, **options) -> Running:
        probe, registry = Probe(), CollectorRegistry()
        health = options.pop("health", None) or HealthState()

        def register(server: grpc.aio.Server) -> None:
            distiller_pb2_grpc.add_DistillerServiceServicer_to_server(probe, server)
            add_chat(server)

        service = await start_service(
            "probe",
            register,
            settings=settings or ServingSettings(),
            services=[SERVICE],
            registry=registry,
            health=health,
            **options,
        )
        channel = open_channel(service.address)
        stub = distiller_pb2_grpc.DistillerServiceStub(channel)
        running.append(Running(probe, service, channel, stub, registry, health))
        return running[-1]

    yield start_probe
    for one in running:
        await one.channel.close()
        await one.service.drain(0.0)
