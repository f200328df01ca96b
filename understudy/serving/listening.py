"""Opens the addresses of a service: calls, probes of its health, and metrics."""

from typing import Final
from wsgiref.simple_server import WSGIServer

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from prometheus_client import CollectorRegistry, start_http_server

from understudy.errors import FailedPrecondition
from understudy.rpc.channels import MAX_MESSAGE_BYTES
from understudy.serving.addresses import parse_address
from understudy.serving.health import HealthServicer
from understudy.serving.interceptor import ChassisInterceptor
from understudy.serving.service_settings import ServingSettings

_MIN_PING_INTERVAL_MS: Final = 10_000
_CONNECTION_AGE_GRACE_MS: Final = 600_000
_MAX_PROBE_BYTES: Final = 4096
_MAX_PROBES: Final = 100


def server_options(settings: ServingSettings, max_receive_bytes: int) -> list[tuple[str, int]]:
    """Return the options of a server for calls."""
    options = [
        ("grpc.so_reuseport", 0),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", max_receive_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    if settings.max_connection_age_s > 0:
        age_ms = int(settings.max_connection_age_s * 1000)
        options.append(("grpc.max_connection_age_ms", age_ms))
        options.append(("grpc.max_connection_age_grace_ms", _CONNECTION_AGE_GRACE_MS))
    return options


def listen_on(
    server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials | None = None
) -> tuple[str, int]:
    """Listen in plaintext unless credentials are given; return host and port.

    Raises FailedPrecondition naming an address that cannot be listened on.
    """
    host, _ = parse_address(listen)
    try:
        if credentials is None:
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, credentials)
    except RuntimeError as error:
        raise FailedPrecondition(
            f"The address {listen} cannot be listened on; another process may hold the port: "
            "stop it or choose another address."
        ) from error
    return host, port


def expose_metrics(metrics_listen: str, registry: CollectorRegistry) -> WSGIServer | None:
    """Serve the metrics of a registry over HTTP, where an address is given.

    Raises FailedPrecondition naming an address that cannot be listened on.
    """
    if not metrics_listen:
        return None
    host, port = parse_address(metrics_listen)
    try:
        metrics_server, _ = start_http_server(port, host, registry)
    except OSError as error:
        raise FailedPrecondition(
            f"The metrics address {metrics_listen} cannot be listened on ({error.strerror}): "
            "stop the process that holds it or choose another address."
        ) from error
    return metrics_server


async def answer_probes(
    listen: str, servicer: HealthServicer, interceptor: ChassisInterceptor
) -> tuple[grpc.aio.Server, int]:
    """Answer health checks, and nothing else, in plaintext; return the server and its port.

    Watches are not served: whoever held many of them would keep the probes out.
    Raises FailedPrecondition naming an address that cannot be listened on.
    """
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", _MAX_PROBE_BYTES)]
    server = grpc.aio.server(
        interceptors=[interceptor], options=options, maximum_concurrent_rpcs=_MAX_PROBES
    )
    check = grpc.unary_unary_rpc_method_handler(
        servicer.Check,
        health_pb2.HealthCheckRequest.FromString,
        health_pb2.HealthCheckResponse.SerializeToString,
    )
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    handlers = grpc.method_handlers_generic_handler(health_name, {"Check": check})
    server.add_generic_rpc_handlers((handlers,))
    _, port = listen_on(server, listen)
    await server.start()
    return server, port
