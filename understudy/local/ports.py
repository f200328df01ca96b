"""Loopback ports: which are free, and whether a Redis answers behind one.

A port that is chosen before its server binds it can be taken in between: by the kernel for an
outgoing connection, or by another process that chooses. So ports come from below the range that
kernels hand out by themselves, and each is claimed, by a lock on a file, until its process ends.
"""

import fcntl
import os
import random
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from understudy.errors import FailedPrecondition, InvalidArgument

LOOPBACK: Final = "127.0.0.1"
_CLAIMABLE: Final = range(20_000, 28_000)
_PROBE_TIMEOUT_S: Final = 2.0
_REDIS_PORT: Final = 6379


def free_port(span: Sequence[int] = _CLAIMABLE) -> int:
    """Return a port of `span` that nobody listens on, for this process as long as it lives.

    Raises FailedPrecondition when every port of the span is taken.
    """
    claims = _claims_directory()
    for port in random.sample(span, len(span)):
        claim = _claim(claims / str(port))
        if claim is None:
            continue
        if _binds(port):
            return port
        os.close(claim)
    raise FailedPrecondition(
        f"No port of {LOOPBACK} between {span[0]} and {span[-1]} is free: end what listens there."
    )


def _claims_directory() -> Path:
    directory = Path(tempfile.gettempdir()) / f"understudy-ports-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def _claim(file: Path) -> int | None:
    """Lock a file and return its descriptor, which holds the lock; None where another has it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _binds(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


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
