"""What certificates and keys have to be before a process uses them."""

from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from understudy.serving.certificates import (
    AUTHORITIES,
    CHAIN,
    KEY,
    CertificateError,
    Certificates,
)

MIN_RSA_BITS: Final = 2048


def checked(
    folder: Path, chain: bytes, key: bytes, authorities: bytes | None, now: datetime
) -> Certificates:
    """Return the set once its files are what they should be and belong together.

    Raises CertificateError naming the file that does not.
    """
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
