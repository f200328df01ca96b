"""A started service: one gRPC server with everything that the chassis adds, and its drain.

Drain, in order: health says NOT_SERVING and new calls are refused, so that peers turn elsewhere
while this server still answers health checks, and a public one gives its connections up; the
service finishes or hands over its own work;
running calls get what is left of the grace; those that stay end with UNAVAILABLE.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from wsgiref.simple_server import WSGIServer

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from understudy.rpc.channels import MAX_MESSAGE_BYTES
from understudy.rpc.deadlines import Deadline
from understudy.serving.calls import RunningCalls
from understudy.serving.health import HealthServicer, HealthState
from understudy.serving.interceptor import ChassisInterceptor
from understudy.serving.listening import (
    answer_probes,
    expose_metrics,
    listen_on,
    server_options,
)
from understudy.serving.observation import CallObserver, CertificateObserver
from understudy.serving.service_settings import ServingSettings
from understudy.serving.transport import ANYONE, Transport
from understudy.telemetry import Instruments, tracer

Register = Callable[[grpc.aio.Server], Awaitable[None] | None]
OnDrain = Callable[[float], Awaitable[None]]

_STOP_GRACE_S: Final = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningService:
    """A server that listens; `drain` ends it."""

    host: str
    """Host it listens on."""
    port: int
    """Port of the gRPC server."""
    server: grpc.aio.Server
    """The server itself."""
    calls: RunningCalls
    """Calls being served."""
    health_servicer: HealthServicer
    """What tells peers whether this service takes work."""
    on_drain: OnDrain | None
    """What the service does to finish or hand over its own work."""
    metrics_server: WSGIServer | None
    """Server of the Prometheus endpoint."""
    probes: tuple[grpc.aio.Server, int] | None
    """Server of health checks in plaintext, and its port."""
    is_public: bool
    """Whether callers may know a single address for all replicas, as behind a load balancer."""

    @property
    def address(self) -> str:
        """Where peers on this machine reach the service."""
        return f"{self.host}:{self.port}"

    @property
    def metrics_port(self) -> int | None:
        """Port of the Prometheus endpoint, None where there is none."""
        return None if self.metrics_server is None else self.metrics_server.server_port

    @property
    def health_port(self) -> int | None:
        """Port that answers health checks in plaintext, None where there is none."""
        return None if self.probes is None else self.probes[1]

    async def drain(self, grace_s: float, hurry: asyncio.Event | None = None) -> None:
        """Stop in order, within `grace_s` seconds; at once when `hurry` is set meanwhile.

        A public service gives its connections up when it begins, calls that run apart: a caller
        with one address for all replicas would else stay with this one until its last call ended.
        """
        deadline = Deadline.after(grace_s)
        self.health_servicer.start_draining()
        self.calls.start_draining()
        leaving: list[Awaitable[None]] = []
        if self.is_public:
            leaving.append(asyncio.ensure_future(self.server.stop(grace_s + _STOP_GRACE_S)))
        await _first(self._finish(grace_s), hurry, deadline)
        num_interrupted = self.calls.interrupt()
        if num_interrupted:
            _log.warning(
                "Calls that outlived the drain were ended with UNAVAILABLE.",
                extra={"num_calls": num_interrupted, "grace_s": grace_s},
            )
        self.health_servicer.close()
        await asyncio.gather(self.server.stop(_STOP_GRACE_S), *leaving)
        if self.probes is not None:
            await self.probes[0].stop(_STOP_GRACE_S)
        if self.metrics_server is not None:
            await asyncio.to_thread(self.metrics_server.shutdown)
            self.metrics_server.server_close()

    async def _finish(self, grace_s: float) -> None:
        if self.on_drain is not None:
            (error,) = await asyncio.gather(self.on_drain(grace_s), return_exceptions=True)
            if error is not None:
                _log.error(
                    "The service could not hand over its work; the drain goes on.", exc_info=error
                )
        await self.calls.wait_idle()


async def start_service(
    service_name: str,
    register: Register,
    *,
    settings: ServingSettings,
    services: Sequence[str],
    health: HealthState | None = None,
    on_drain: OnDrain | None = None,
    spans: Mapping[str, str] = MappingProxyType({}),
    endless: Collection[str] = (),
    registry: CollectorRegistry | None = None,
    max_receive_bytes: int = MAX_MESSAGE_BYTES,
    callers: Collection[str] = (),
    transport: Transport | None = None,
) -> RunningService:
    """Start a service in this process; `serve` adds signals, tracing and the ready file.

    Raises `FailedPrecondition` naming an address that cannot be listened on, and `SettingsError`
    naming a certificate that cannot be used.
    """
    transport = Transport.open(settings) if transport is None else transport
    registry = CollectorRegistry() if registry is None else registry
    health = HealthState() if health is None else health
    calls = RunningCalls(settings.max_concurrent_calls, endless)
    instruments = Instruments("serving", registry)
    observer = CallObserver(tracer(f"understudy.{service_name}"), instruments, spans)
    interceptor = ChassisInterceptor(
        calls, observer, settings.max_call_s, transport.permitted(callers)
    )
    options = server_options(settings, max_receive_bytes)
    server = grpc.aio.server(interceptors=[interceptor], options=options)
    health_servicer = _add_infrastructure(server, health, services)
    await _register(server, register)
    identity = transport.towards(callers)
    credentials = None if identity is None else identity.server_credentials()
    host, port = listen_on(server, settings.listen, credentials)
    CertificateObserver(instruments).observe(transport)
    metrics_server = expose_metrics(settings.metrics_listen, registry)
    probes = None
    if settings.health_listen:
        probes = await answer_probes(settings.health_listen, health_servicer, interceptor)
    await server.start()
    return RunningService(
        host=host,
        port=port,
        server=server,
        calls=calls,
        health_servicer=health_servicer,
        on_drain=on_drain,
        metrics_server=metrics_server,
        probes=probes,
        is_public=callers is ANYONE,
    )


async def _register(server: grpc.aio.Server, register: Register) -> None:
    registered = register(server)
    if inspect.isawaitable(registered):
        await registered


def _add_infrastructure(
    server: grpc.aio.Server, health: HealthState, services: Sequence[str]
) -> HealthServicer:
    servicer = HealthServicer(health, services)
    loop = asyncio.get_running_loop()
    health.subscribe(lambda: _on_loop(loop, servicer.refresh))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    reflection.enable_server_reflection((*services, health_name, reflection.SERVICE_NAME), server)
    return servicer


def _on_loop(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback)


async def _first(work: Awaitable[None], hurry: asyncio.Event | None, deadline: Deadline) -> None:
    """Wait for the work, the signal to hurry or the deadline; then cancel what still runs."""
    waiting = [asyncio.ensure_future(work)]
    if hurry is not None:
        waiting.append(asyncio.ensure_future(_until(hurry)))
    await asyncio.wait(waiting, timeout=deadline.remaining_s, return_when=asyncio.FIRST_COMPLETED)
    for future in waiting:
        future.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def _until(event: asyncio.Event) -> None:
    await event.wait()
