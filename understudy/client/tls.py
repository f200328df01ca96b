"""How a client speaks TLS with the platform."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc

from understudy.errors import InvalidArgument
from understudy.rpc import Peer


@dataclass(frozen=True, slots=True)
class Tls:
    """Speak TLS, and trust these authorities.

    Certificates are read when this is made; make another client for others.
    """

    roots: bytes | None = None
    """Certificates of trusted authorities, PEM; None trusts those that grpcio brings."""
    name: str = ""
    """Name that the platform's certificate must have; empty is the host of the address."""

    @classmethod
    def trusting(cls, path: Path | str, name: str = "") -> Self:
        """Trust the authorities in a PEM file; raises InvalidArgument naming it."""
        try:
            roots = Path(path).read_bytes()
        except OSError as error:
            raise InvalidArgument(f"The file {path} cannot be read ({error.strerror}).") from error
        if b"-----BEGIN CERTIFICATE-----" not in roots:
            raise InvalidArgument(f"The file {path} holds no certificate in PEM.")
        return cls(roots, name)

    def peer(self) -> Peer:
        """Return how to dial."""
        credentials = grpc.ssl_channel_credentials(self.roots)
        return Peer(self.name, lambda: credentials)
