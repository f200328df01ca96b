"""Who a process is to its peers, with certificates that change while it runs.

The files are looked at when somebody needs them: at each handshake, each new call and each scrape.
A set that cannot be used leaves the one in use, is counted, and is told once.
"""

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from threading import RLock

import grpc

from understudy.rpc import Peer
from understudy.serving.certificates import (
    CertificateError,
    Certificates,
    components_of,
    paths_in,
    read_certificates,
    utc_now,
)
from understudy.serving.followed import Followed


class Identity:
    """The certificates of one component; used from any thread."""

    def __init__(
        self,
        folder: Path,
        domain: str = "",
        *,
        is_public: bool = False,
        now: Callable[[], datetime] = utc_now,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the folder. A public identity asks its callers for no certificate.

        Raises CertificateError naming the file that cannot be used.
        """
        self._folder, self._domain, self._is_public, self._now = folder, domain, is_public, now
        self._lock = RLock()  # a listener may ask for credentials
        self._files = Followed(
            "certificates", paths_in(folder), self._read, facts=_facts, clock_s=clock_s
        )
        self._files.current()
        self._dialling: tuple[Certificates, grpc.ChannelCredentials] | None = None

    @property
    def remaining_s(self) -> float:
        """Seconds until the certificate ends; negative after that."""
        return (self.current().ends_at - self._now()).total_seconds()

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever a new set cannot be used, on the thread that found it."""
        self._files.subscribe(listener)

    def current(self) -> Certificates:
        """Return the set in use, which is that of the files unless they cannot be used."""
        return self._files.current()

    def peer(self, component: str) -> Peer:
        """Return how to dial a component."""
        return Peer(f"{component}.{self._domain}", self.channel_credentials)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return the credentials of new connections: the same object until the files change."""
        with self._lock:
            used = self.current()
            if self._dialling is None or self._dialling[0] is not used:
                self._dialling = (
                    used,
                    grpc.ssl_channel_credentials(used.authorities, used.key, used.chain),
                )
            return self._dialling[1]

    def server_credentials(self) -> grpc.ServerCredentials:
        """Return credentials that look at the files at each handshake."""
        known = self.current()

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal known
            current = self.current()
            if current is known:
                return None
            known = current
            return _configuration(current)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(known),
            changed,  # type: ignore[arg-type]  # None is "as before", which the stubs do not know
            require_client_authentication=not self._is_public,
        )

    def components_of(self, names: Iterable[str]) -> frozenset[str]:
        """Return the components that a certificate with these names belongs to."""
        return components_of(names, self._domain)

    def _read(self) -> Certificates:
        certificates = read_certificates(self._folder, self._now(), is_public=self._is_public)
        if not self._is_public and not components_of(certificates.names, self._domain):
            raise CertificateError(
                f"The certificate in {self._folder} has no DNS name <component>.{self._domain}; "
                "issue it with one, or correct UNDERSTUDY_SERVING_TLS_DOMAIN."
            )
        return certificates


def _facts(certificates: Certificates) -> dict[str, str]:
    return {"ends_at": certificates.ends_at.isoformat()}


def _configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(certificates.key, certificates.chain)], certificates.authorities or None
    )
