"""Serves until SIGTERM or SIGINT, then drains: the main loop of every process."""

import asyncio
import logging
import signal
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from types import MappingProxyType

from prometheus_client import CollectorRegistry

from understudy.rpc.channels import MAX_MESSAGE_BYTES
from understudy.serving.health import HealthState
from understudy.serving.ready_file import write_ready_file
from understudy.serving.running import OnDrain, Register, RunningService, start_service
from understudy.serving.service_settings import ServingSettings
from understudy.serving.transport import Transport
from understudy.telemetry import configure_tracing

_log = logging.getLogger(__name__)


async def serve(
    service_name: str,
    register: Register,
    *,
    settings: ServingSettings,
    services: Sequence[str],
    health: HealthState | None = None,
    on_drain: OnDrain | None = None,
    tasks: Sequence[Callable[[], Awaitable[None]]] = (),
    spans: Mapping[str, str] = MappingProxyType({}),
    endless: Collection[str] = (),
    registry: CollectorRegistry | None = None,
    max_receive_bytes: int = MAX_MESSAGE_BYTES,
    callers: Collection[str] = (),
    transport: Transport | None = None,
) -> None:
    """Serve until a signal or a failed task; drain (a second signal hurries); return or raise.

    - `register` adds the servicers; `services` are their full names, for health and reflection.
    - `health` says when the service takes work; from then on the ready file exists.
    - `on_drain` gets the grace in seconds and finishes or hands over the service's own work.
    - `tasks` run beside the server and are cancelled after the drain.
    - `spans` maps "/package.Service/Method" to the name of the span that each such call gets.
    - `endless` methods live as long as the peer: no deadline, and drain ends them as UNAVAILABLE.
    - `max_receive_bytes` bounds one message from a peer; gRPC refuses a longer one itself.
    - `callers` are the components whose certificates may call where services have any; `ANYONE`
      is for callers from outside.
    - `transport` is what the service dials its peers with; without one the settings' is opened.
    """
    health = HealthState() if health is None else health
    async with _traced(service_name, settings):
        service = await start_service(
            service_name,
            register,
            settings=settings,
            services=services,
            health=health,
            on_drain=on_drain,
            spans=spans,
            endless=endless,
            registry=registry,
            max_receive_bytes=max_receive_bytes,
            callers=callers,
            transport=transport,
        )
        with _signals() as (stop, hurry):
            await _run(service, health, settings, tasks, stop, hurry)


@asynccontextmanager
async def _traced(service_name: str, settings: ServingSettings) -> AsyncIterator[None]:
    """Export spans meanwhile, and flush what is left at the end."""
    stop = configure_tracing(service_name, settings.otlp_endpoint, settings.trace_sample_ratio)
    try:
        yield
    finally:
        await asyncio.to_thread(stop)


async def _run(
    service: RunningService,
    health: HealthState,
    settings: ServingSettings,
    tasks: Sequence[Callable[[], Awaitable[None]]],
    stop: asyncio.Event,
    hurry: asyncio.Event,
) -> None:
    beside = [asyncio.ensure_future(task()) for task in tasks]
    beside.append(asyncio.ensure_future(_announce(service, health, settings)))
    for future in beside:
        future.add_done_callback(lambda ended: _stop_on_failure(ended, stop))
    await stop.wait()
    _log.info("Draining.", extra={"grace_s": settings.drain_grace_s})
    await service.drain(settings.drain_grace_s, hurry)
    for future in beside:
        future.cancel()
    ended = await asyncio.gather(*beside, return_exceptions=True)
    _log.info("Stopped.")
    failures = [error for error in ended if isinstance(error, Exception)]
    if failures:
        raise failures[0]


async def _announce(
    service: RunningService, health: HealthState, settings: ServingSettings
) -> None:
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    health.subscribe(lambda: _set_on(loop, ready))
    while not health.is_ready:
        await ready.wait()
        ready.clear()
    if settings.ready_file is not None:
        write_ready_file(settings.ready_file, service.port, service.metrics_port)
    _log.info(
        f"Ready on {service.address}.",
        extra={
            "port": service.port,
            "metrics_port": service.metrics_port,
            "health_port": service.health_port,
        },
    )


def _set_on(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(event.set)


def _stop_on_failure(ended: asyncio.Future[None], stop: asyncio.Event) -> None:
    error = None if ended.cancelled() else ended.exception()
    if error is not None:
        _log.error("A task of the service failed; the service stops.", exc_info=error)
        stop.set()


@contextmanager
def _signals() -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Events set by the first and by the second SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        yield stop, hurry
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
