"""Makes and replaces the certificates of an installation that has no cert-manager.

    python -m deploy.certificates make FOLDER
    python -m deploy.certificates secrets FOLDER --namespace understudy | kubectl apply -f -

One folder holds the authority and, for each component, what its Secret holds. `renew` issues anew;
`trust`, `switch` and `finish`, with `secrets` applied after each, replace the authority without a
refused call; one that was interrupted is given again. The folder holds private keys: keep it where
other secrets are kept.
"""

import argparse
import base64
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

COMPONENTS: Final = (
    "router", "attention", "experts", "kvstore", "controller", "distiller", "caller",
)  # fmt: skip
"""Services, and `caller` for those who order training runs."""
LEEWAY: Final = timedelta(minutes=5)
"""Certificates begin this much before they are made, for clocks that are behind."""
_PEM: Final = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True)
class Validity:
    """When something begins and ends."""

    begins_at: datetime
    ends_at: datetime

    @classmethod
    def of(cls, days: float, now: datetime) -> Self:
        """From now on, for so many days."""
        return cls(now - LEEWAY, now + timedelta(days=days))


@dataclass(frozen=True, slots=True)
class Authority:
    """What issues certificates."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, name: str, validity: Validity) -> Self:
        """Make one, signed by itself."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(
            digital_signature=False, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, key_cert_sign=True, crl_sign=True,
            encipher_only=False, decipher_only=False,
        )  # fmt: skip
        builder = (
            _builder(subject, subject, key, validity)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def read(cls, folder: Path, name: str) -> Self:
        """Read `<name>.crt` and `<name>.key`, which belong together unless `finish` broke off."""
        certificate = x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())
        key = serialization.load_pem_private_key((folder / f"{name}.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey), "authorities are made here only"
        if key.public_key() != certificate.public_key():
            raise SystemExit(f"The {name} authority is half replaced: run finish again first.")
        return cls(certificate, key)

    @property
    def pem(self) -> bytes:
        """Its certificate."""
        return self.certificate.public_bytes(_PEM)

    def write(self, folder: Path, name: str) -> None:
        """Write `<name>.key`, then `<name>.crt`, with which it is there."""
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / f"{name}.key", key_pem(self.key))
        _write(folder / f"{name}.crt", self.pem)

    def issue(self, name: str, validity: Validity) -> tuple[bytes, bytes]:
        """Return certificate and key of a component, for both ends of a call."""
        key = ec.generate_private_key(ec.SECP256R1())
        own = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            _builder(x509.Name([]), self.certificate.subject, key, validity)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(both), critical=False)
            .add_extension(own, critical=False)
        )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(_PEM), key_pem(key)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as its file holds it."""
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def publish(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replace all files of a folder at once, by a link, as the kubelet does with a Secret."""
    folder.mkdir(parents=True, exist_ok=True)
    former = list(folder.glob("..v*"))
    number = 1 + max((int(path.name[3:]) for path in former), default=0)
    made = folder / f"..v{number}"
    made.mkdir(mode=0o700)
    for name, content in files.items():
        _write(made / name, content)
    fresh = folder / "..data_tmp"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(made.name)
    fresh.replace(folder / "..data")
    for name in files:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data") / name)
    for surplus in former:
        shutil.rmtree(surplus)


@dataclass(frozen=True, slots=True)
class Installation:
    """The folder of one installation."""

    folder: Path

    @property
    def authorities(self) -> Path:
        """Where the keys of authorities are."""
        return self.folder / "authority"

    @property
    def is_rotating(self) -> bool:
        """Whether there is an authority that is to become the only one."""
        return (self.authorities / "next.crt").exists()

    @property
    def domain(self) -> str:
        """Domain of the certificates."""
        return (self.folder / "domain").read_text("utf-8").strip()

    def make(self, domain: str, authority_days: float, days: float, now: datetime) -> None:
        """Make an authority and the certificates of all components."""
        if self.folder.exists() and any(self.folder.iterdir()):
            raise SystemExit(f"{self.folder} is not empty; renew what is there or name another.")
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.folder / "domain").write_text(f"{domain}\n", "utf-8")
        _authority(domain, authority_days, now).write(self.authorities, "current")
        self.renew(days, now)

    def renew(self, days: float, now: datetime) -> None:
        """Issue the certificates of all components anew by the authority in use."""
        self._issue(Authority.read(self.authorities, "current"), days, now)

    def trust(self, authority_days: float, now: datetime) -> None:
        """Have a new authority trusted beside the one in use."""
        if not self.is_rotating:
            _authority(self.domain, authority_days, now).write(self.authorities, "next")
        elif all(self._files(one)["ca.crt"] == self._trusted() for one in COMPONENTS):
            raise SystemExit("A new authority is trusted already; switch to it.")
        self._republish()

    def switch(self, days: float, now: datetime) -> None:
        """Issue the certificates of all components by the new authority."""
        self._require_rotation()
        self._issue(Authority.read(self.authorities, "next"), days, now)

    def finish(self) -> None:
        """Trust the new authority alone, which becomes the one in use."""
        self._require_rotation()
        issuer = Authority.read(self.authorities, "next")
        for component in COMPONENTS:
            own = x509.load_pem_x509_certificate((self.folder / component / "tls.crt").read_bytes())
            if own.issuer != issuer.certificate.subject:
                raise SystemExit(f"{component} has a certificate of the former one; switch first.")
        # `next` stays until all of it is done, so that an interrupted `finish` can be given again.
        issuer.write(self.authorities, "current")
        self._republish()
        for suffix in ("crt", "key"):
            (self.authorities / f"next.{suffix}").unlink()

    def secrets(self, name: str, namespace: str) -> str:
        """Return a Secret per component, as JSON that kubectl takes."""
        items = [
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": "kubernetes.io/tls",
                "metadata": {"name": f"{name}-{component}", "namespace": namespace},
                "data": {
                    key: base64.b64encode(content).decode()
                    for key, content in self._files(component).items()
                },
            }
            for component in COMPONENTS
        ]
        return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=2)

    def _trusted(self) -> bytes:
        paths = [self.authorities / "current.crt", self.authorities / "next.crt"]
        return b"".join(dict.fromkeys(path.read_bytes() for path in paths if path.exists()))

    def _files(self, component: str) -> dict[str, bytes]:
        folder = self.folder / component
        return {name: (folder / name).read_bytes() for name in ("tls.crt", "tls.key", "ca.crt")}

    def _issue(self, authority: Authority, days: float, now: datetime) -> None:
        trusted, validity = self._trusted(), Validity.of(days, now)
        for component in COMPONENTS:
            chain, key = authority.issue(f"{component}.{self.domain}", validity)
            files = {"tls.crt": chain, "tls.key": key, "ca.crt": trusted}
            publish(self.folder / component, files)

    def _republish(self) -> None:
        trusted = self._trusted()
        for component in COMPONENTS:
            publish(self.folder / component, {**self._files(component), "ca.crt": trusted})

    def _require_rotation(self) -> None:
        if not self.is_rotating:
            raise SystemExit("There is no new authority; have one trusted first.")


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    asked = _parser().parse_args(arguments)
    installation, now = Installation(asked.folder), datetime.now(UTC)
    if asked.do == "make":
        installation.make(asked.domain, asked.authority_days, asked.days, now)
    elif not (installation.folder / "domain").exists():
        raise SystemExit(f"{installation.folder} holds no certificates; make them first.")
    elif asked.do == "renew":
        installation.renew(asked.days, now)
    elif asked.do == "trust":
        installation.trust(asked.authority_days, now)
    elif asked.do == "switch":
        installation.switch(asked.days, now)
    elif asked.do == "finish":
        installation.finish()
    else:
        print(installation.secrets(asked.name, asked.namespace))


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    name = "python -m deploy.certificates"
    parser = argparse.ArgumentParser(prog=name, description=__doc__, formatter_class=form)
    parser.add_argument("do", choices=["make", "renew", "trust", "switch", "finish", "secrets"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--domain", default="understudy", help="names are <component>.<domain>")
    parser.add_argument("--days", type=float, default=90, help="life of certificates")
    parser.add_argument("--authority-days", type=float, default=3650, help="life of an authority")
    parser.add_argument("--name", default="understudy-tls", help="Secrets are <name>-<component>")
    parser.add_argument("--namespace", default="understudy")
    return parser


def _authority(domain: str, days: float, now: datetime) -> Authority:
    return Authority.make(f"{domain} {now:%Y-%m-%d %H:%M:%S.%f}", Validity.of(days, now))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, validity: Validity
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(validity.begins_at)
        .not_valid_after(validity.ends_at)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _write(path: Path, content: bytes) -> None:
    """Write a file that only its owner reads, in one step."""
    fresh = path.with_name(f".{path.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


if __name__ == "__main__":
    main(sys.argv[1:])
