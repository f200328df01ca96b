"""Reads a folder of certificates: one consistent set of three files, or a sentence what is wrong.

The layout is that of a Kubernetes TLS Secret: `tls.crt` (own certificate, then intermediates),
`tls.key` and `ca.crt` (one or more authorities). Nothing of a key ever enters a message.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from understudy.errors import FailedPrecondition
from understudy.serving.followed import sign_of

CHAIN: Final = "tls.crt"
KEY: Final = "tls.key"
AUTHORITIES: Final = "ca.crt"
MAX_FILE_BYTES: Final = 1024 * 1024
_TRIES: Final = 3


class CertificateError(FailedPrecondition):
    """A set of certificates cannot be used; the message names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """One set, as gRPC takes it."""

    chain: bytes
    """Own certificate and intermediates, PEM."""
    key: bytes = field(repr=False)
    """Private key of the own certificate, PEM."""
    authorities: bytes
    """Certificates that peers' must come from, PEM; empty where none are asked for."""
    names: frozenset[str]
    """DNS names of the own certificate."""
    ends_at: datetime
    """When the own certificate ends."""


def paths_in(folder: Path) -> tuple[Path, ...]:
    """Return the files of a folder."""
    return tuple(folder / name for name in (CHAIN, KEY, AUTHORITIES))


def read_certificates(folder: Path, now: datetime, *, is_public: bool = False) -> Certificates:
    """Return the set in a folder; all files are of one moment. A public one has no authorities.

    Raises CertificateError.
    """
    paths = paths_in(folder)
    for _ in range(_TRIES):
        before = sign_of(paths)
        try:
            chain, key = _read(folder / CHAIN), _read(folder / KEY)
            authorities = None if is_public else _read(folder / AUTHORITIES)
        except CertificateError:
            if sign_of(paths) == before:
                raise
            continue
        if sign_of(paths) == before:
            # Takes 3 MiB that a process without certificates saves.
            from understudy.serving.certificate_checks import checked

            return checked(folder, chain, key, authorities, now)
    raise CertificateError(f"The files in {folder} changed each time they were read.")


def components_of(names: Iterable[str], domain: str) -> frozenset[str]:
    """Return the components that a certificate with these DNS names belongs to."""
    labels = (name.removesuffix(f".{domain}") for name in names if name.endswith(f".{domain}"))
    return frozenset(label for label in labels if "." not in label)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CertificateError(
            f"The file {path} cannot be read ({error.strerror}); it belongs to the certificates "
            "in UNDERSTUDY_SERVING_TLS_DIR: mount it, and let this user read it."
        ) from error
    if len(content) > MAX_FILE_BYTES:
        raise CertificateError(f"The file {path} is larger than {MAX_FILE_BYTES} bytes.")
    return content


def utc_now() -> datetime:
    """Return the time that certificates are compared with."""
    return datetime.now(UTC)
