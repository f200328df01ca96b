"""Reads a folder of certificates: one consistent set of three files, or a sentence what is wrong.

The layout is that of a Kubernetes TLS Secret: `tls.crt` (own certificate, then intermediates),
`tls.key` and `ca.crt` (one or more authorities). Nothing of a key ever enters a message.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from understudy.errors import FailedPrecondition

CHAIN: Final = "tls.crt"
KEY: Final = "tls.key"
AUTHORITIES: Final = "ca.crt"
MAX_FILE_BYTES: Final = 1024 * 1024
MIN_RSA_BITS: Final = 2048
_TRIES: Final = 3

Signature = tuple[tuple[int, int, int], ...]
"""Inode, time of change and size of each file; the zeros of a file that is not there."""


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


def sign_of(paths: Iterable[Path]) -> Signature:
    """Return what differs as soon as one of the files is another one."""
    return tuple(_sign(path) for path in paths)


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
            return _checked(folder, chain, key, authorities, now)
    raise CertificateError(f"The files in {folder} changed each time they were read.")


def components_of(names: Iterable[str], domain: str) -> frozenset[str]:
    """Return the components that a certificate with these DNS names belongs to."""
    labels = (name.removesuffix(f".{domain}") for name in names if name.endswith(f".{domain}"))
    return frozenset(label for label in labels if "." not in label)


def _sign(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_ino, found.st_mtime_ns, found.st_size


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


def _checked(
    folder: Path, chain: bytes, key: bytes, authorities: bytes | None, now: datetime
) -> Certificates:
    own = _parsed(folder / CHAIN, chain)[0]
    if authorities is not None:
        _parsed(folder / AUTHORITIES, authorities)
    try:
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CertificateError(
            f"The file {folder / KEY} holds no private key in PEM without a password."
        ) from None  # what a parser says of a key stays here
    if not _is_supported(private):
        raise CertificateError(
            f"The key in {folder / KEY} is of a kind that gRPC makes no connection with; use ECDSA "
            "with P-256 or P-384, or RSA of 2048 bits or more."
        )
    if private.public_key() != own.public_key():
        raise CertificateError(
            f"The key in {folder / KEY} belongs to another certificate than {folder / CHAIN}."
        )
    begins_at, ends_at = own.not_valid_before_utc, own.not_valid_after_utc
    if now >= ends_at:
        raise CertificateError(f"The certificate {folder / CHAIN} ended at {ends_at}; renew it.")
    if now < begins_at:
        raise CertificateError(
            f"The certificate {folder / CHAIN} begins at {begins_at}; compare the clocks."
        )
    return Certificates(chain, key, authorities or b"", _dns_names(own), ends_at)


def _is_supported(key: PrivateKeyTypes) -> bool:
    """Ed25519 and P-521 are loaded by BoringSSL, whose handshakes then fail."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
    return isinstance(key, rsa.RSAPrivateKey) and key.key_size >= MIN_RSA_BITS


def _parsed(path: Path, content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise CertificateError(f"The file {path} holds no certificate in PEM.") from error


def _dns_names(certificate: x509.Certificate) -> frozenset[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return frozenset()
    return frozenset(names.get_values_for_type(x509.DNSName))


def utc_now() -> datetime:
    """Return the time that certificates are compared with."""
    return datetime.now(UTC)
