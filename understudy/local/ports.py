"""Loopback ports: which are free, and whether a Redis answers behind one."""

import socket
from typing import Final
from urllib.parse import urlsplit

from understudy.errors import FailedPrecondition, InvalidArgument

LOOPBACK: Final = "127.0.0.1"
_PROBE_TIMEOUT_S: Final = 2.0
_REDIS_PORT: Final = 6379


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def require_free(port: int, what: str, variable: str) -> None:
    """Raise FailedPrecondition when somebody listens on a fixed port; 0 is always free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise FailedPrecondition(
                f"Port {port}, meant for {what}, cannot be taken ({error.strerror}): end the"
                f" process that holds it (`understudy down`?), or set {variable} to another port or"
                " to 0 for a free one."
            ) from error


def answers_ping(host: str, port: int, timeout_s: float = _PROBE_TIMEOUT_S) -> bool:
    """Say whether a Redis answers there, be it only to ask for a password."""
    try:
        with socket.create_connection((host, port), timeout_s) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16)[:1] in (b"+", b"-")
    except OSError:
        return False


def require_redis(url: str, variable: str) -> None:
    """Raise when no Redis answers at a URL of the user's: InvalidArgument or FailedPrecondition."""
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise InvalidArgument(f"{variable} is no Redis URL; write redis://host:port/0.")
    port = parts.port or _REDIS_PORT
    if parts.scheme == "redis" and not answers_ping(parts.hostname, port):
        raise FailedPrecondition(
            f"No Redis answers at {parts.hostname}:{port}: start it, correct {variable}, or unset"
            " it so that a Valkey is started for you."
        )
