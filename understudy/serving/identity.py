"""Who a process is to its peers, with certificates that change while it runs.

The files are looked at when somebody needs them: at each handshake, each new call and each scrape.
A set that cannot be used leaves the one in use, is counted, and is told once.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from threading import Lock

import grpc

from understudy.rpc import Peer
from understudy.serving.certificates import (
    CertificateError,
    Certificates,
    components_of,
    paths_in,
    read_certificates,
    sign_of,
    utc_now,
)

_log = logging.getLogger(__name__)


class Identity:
    """The certificates of one component; used from any thread."""

    def __init__(
        self,
        folder: Path,
        domain: str = "",
        *,
        is_public: bool = False,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """Read the folder. A public identity asks its callers for no certificate.

        Raises CertificateError naming the file that cannot be used.
        """
        self._folder, self._domain, self._is_public, self._now = folder, domain, is_public, now
        self._lock = Lock()
        self._paths = paths_in(folder)
        self._sign = sign_of(self._paths)
        self._certificates = self._read()
        self._channel_credentials: grpc.ChannelCredentials | None = None
        self._listeners: list[Callable[[], None]] = []

    @property
    def remaining_s(self) -> float:
        """Seconds until the certificate ends; negative after that."""
        return (self.current().ends_at - self._now()).total_seconds()

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever a new set cannot be used, on the thread that found it."""
        with self._lock:
            self._listeners.append(listener)

    def current(self) -> Certificates:
        """Return the set in use, which is that of the files unless they cannot be used."""
        listeners: Sequence[Callable[[], None]] = ()
        with self._lock:
            sign = sign_of(self._paths)
            if sign != self._sign:
                self._sign = sign
                listeners = () if self._replace() else tuple(self._listeners)
            certificates = self._certificates
        for listener in listeners:
            listener()
        return certificates

    def peer(self, component: str) -> Peer:
        """Return how to dial a component."""
        return Peer(f"{component}.{self._domain}", self.channel_credentials)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return the credentials of new connections: the same object until the files change."""
        self.current()
        with self._lock:
            if self._channel_credentials is None:
                used = self._certificates
                self._channel_credentials = grpc.ssl_channel_credentials(
                    used.authorities, used.key, used.chain
                )
            return self._channel_credentials

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

    def _replace(self) -> bool:
        try:
            self._certificates = self._read()
        except CertificateError as error:
            _log.error(
                "The new certificates cannot be used; those in use stay. %s",
                error.message,
                extra={"ends_at": self._certificates.ends_at.isoformat()},
            )
            return False
        self._channel_credentials = None
        _log.info(
            "The certificates are new.",
            extra={"ends_at": self._certificates.ends_at.isoformat()},
        )
        return True

    def _read(self) -> Certificates:
        certificates = read_certificates(self._folder, self._now(), is_public=self._is_public)
        if not self._is_public and not components_of(certificates.names, self._domain):
            raise CertificateError(
                f"The certificate in {self._folder} has no DNS name <component>.{self._domain}; "
                "issue it with one, or correct UNDERSTUDY_SERVING_TLS_DOMAIN."
            )
        return certificates


def _configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(certificates.key, certificates.chain)], certificates.authorities or None
    )
