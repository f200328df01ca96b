"""Opens channels: keepalive, message limits, client-side balancing, health checks, retries.

Retry policy and balancing are data (`service_config.json`): round robin over the addresses a name
resolves to, an address whose health is NOT_SERVING is skipped, UNAVAILABLE alone is retried.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Final, cast

import grpc
import grpc.aio

from understudy.rpc.peers import Peer
from understudy.rpc.rotating import AsyncRotatingChannel, RotatingChannel
from understudy.rpc.traces import inject

MAX_MESSAGE_BYTES: Final = 32 * 1024 * 1024
DEFAULT_CALL_TIMEOUT_S: Final = 120.0
"""For calls whose caller named no deadline: no call waits forever."""

_KEEPALIVE_MS: Final = 30_000
_KEEPALIVE_TIMEOUT_MS: Final = 10_000
_MIN_RECONNECT_MS: Final = 100
_MAX_RECONNECT_MS: Final = 2_000
_MIN_RESOLVE_MS: Final = 1_000
"""A pod that restarts has another address, which gRPC's own 30 s would hide for as long."""

_EXPECTED_NAME: Final = "grpc.ssl_target_name_override"

Options = Sequence[tuple[str, str | int]]

WITHOUT_POLICY: Final[Options] = (("grpc.service_config", "{}"),)
"""For channels that ask about health themselves: no balancing, no retries, no health checks."""

if TYPE_CHECKING:
    _UnaryUnary = grpc.aio.UnaryUnaryClientInterceptor[object, object]
    _UnaryStream = grpc.aio.UnaryStreamClientInterceptor[object, object]
else:  # grpcio's own classes are not generic
    _UnaryUnary = grpc.aio.UnaryUnaryClientInterceptor
    _UnaryStream = grpc.aio.UnaryStreamClientInterceptor


@cache
def _service_config() -> str:
    return resources.files("understudy.rpc").joinpath("service_config.json").read_text("utf-8")


def channel_options(options: Options = ()) -> list[tuple[str, str | int]]:
    """Defaults of every channel, with `options` replacing those of the same name."""
    defaults: dict[str, str | int] = {
        "grpc.service_config": _service_config(),
        "grpc.enable_retries": 1,
        "grpc.keepalive_time_ms": _KEEPALIVE_MS,
        "grpc.keepalive_timeout_ms": _KEEPALIVE_TIMEOUT_MS,
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.max_pings_without_data": 0,
        "grpc.initial_reconnect_backoff_ms": _MIN_RECONNECT_MS,
        "grpc.max_reconnect_backoff_ms": _MAX_RECONNECT_MS,
        "grpc.dns_min_time_between_resolutions_ms": _MIN_RESOLVE_MS,
        "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
        "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
    }
    return list({**defaults, **dict(options)}.items())


def open_channel(
    target: str, *, options: Options = (), peer: Peer | None = None
) -> grpc.aio.Channel:
    """An asyncio channel; it connects on first use and redials by itself.

    It is plaintext unless a `peer` says how TLS is spoken. Calls with one request carry the
    current trace context; those with one answer as well end after `DEFAULT_CALL_TIMEOUT_S` unless
    they name a timeout. Request streams are left alone.
    """
    if peer is None:
        chosen = channel_options(options)
        return grpc.aio.insecure_channel(target, options=chosen, interceptors=_interceptors())
    secured = channel_options([*options, *_expectation(peer)])

    def make(credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(
            target, credentials, options=secured, interceptors=_interceptors()
        )

    return cast("grpc.aio.Channel", AsyncRotatingChannel(peer, make))


def open_sync_channel(
    target: str, *, options: Options = (), peer: Peer | None = None
) -> grpc.Channel:
    """The same channel for callers without an event loop; metadata and timeouts are theirs."""
    if peer is None:
        return grpc.insecure_channel(target, options=channel_options(options))
    secured = channel_options([*options, *_expectation(peer)])

    def make(credentials: grpc.ChannelCredentials) -> grpc.Channel:
        return grpc.secure_channel(target, credentials, options=secured)

    return cast("grpc.Channel", RotatingChannel(peer, make))


def _expectation(peer: Peer) -> Options:
    return ((_EXPECTED_NAME, peer.name),) if peer.name else ()


def _interceptors() -> Sequence[grpc.aio.ClientInterceptor]:
    ours = [_UnaryUnaryDefaults(), _UnaryStreamDefaults()]
    return cast("Sequence[grpc.aio.ClientInterceptor]", ours)


def _with_context(
    details: grpc.aio.ClientCallDetails, timeout: float | None
) -> grpc.aio.ClientCallDetails:
    pairs = inject(tuple(details.metadata or ()))
    return grpc.aio.ClientCallDetails(
        details.method,
        timeout,
        grpc.aio.Metadata(*pairs),
        details.credentials,
        details.wait_for_ready,
    )


class _UnaryUnaryDefaults(_UnaryUnary):
    async def intercept_unary_unary(
        self,
        continuation: Callable[..., Awaitable[object]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: object,
    ) -> object:
        timeout = client_call_details.timeout
        timeout = DEFAULT_CALL_TIMEOUT_S if timeout is None else timeout
        return await continuation(_with_context(client_call_details, timeout), request)


class _UnaryStreamDefaults(_UnaryStream):
    async def intercept_unary_stream(  # type: ignore[override]  # the stub is synchronous
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, object], Awaitable[object]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: object,
    ) -> object:
        details = _with_context(client_call_details, client_call_details.timeout)
        return await continuation(details, request)
