"""Sets of certificates: one moment, or a sentence what is wrong; identities that follow them."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from deploy.certificates import Authority, Validity, publish
from understudy.serving.certificates import (
    MAX_FILE_BYTES,
    CertificateError,
    components_of,
    read_certificates,
)
from understudy.serving.followed import RETRY_S
from understudy.serving.identity import Identity

NOW = datetime.now(UTC)
VALID = Validity.of(1, NOW)
ENDED = Validity(NOW - timedelta(days=2), NOW - timedelta(days=1))
AHEAD = Validity(NOW + timedelta(days=1), NOW + timedelta(days=2))
DOMAIN = "understudy"


def files_of(
    authority: Authority, name: str = "experts.understudy", validity: Validity = VALID
) -> dict[str, bytes]:
    chain, key = authority.issue(name, validity)
    return {"tls.crt": chain, "tls.key": key, "ca.crt": authority.pem}


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make("authority", VALID)


@pytest.fixture
def folder(tmp_path: Path, authority: Authority) -> Path:
    publish(tmp_path / "tls", files_of(authority))
    return tmp_path / "tls"


def refusal(folder: Path) -> str:
    with pytest.raises(CertificateError) as caught:
        Identity(folder, DOMAIN)
    return caught.value.message


def test_a_set_is_read_with_its_names_and_its_end(folder: Path) -> None:
    found = read_certificates(folder, NOW)

    assert found.names == {"experts.understudy"}
    assert abs(found.ends_at - VALID.ends_at) < timedelta(seconds=1)
    assert b"PRIVATE KEY" in found.key
    assert "PRIVATE KEY" not in repr(found)


@pytest.mark.parametrize("name", ["tls.crt", "tls.key", "ca.crt"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()

    assert refusal(folder).startswith(f"The file {folder / name} cannot be read (No such file")


def test_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "tls.key").unlink()
    (folder / "tls.key").mkdir()

    assert refusal(folder).startswith(f"The file {folder / 'tls.key'} cannot be read (Is a dir")


def test_a_public_set_needs_no_authorities_and_no_domain(folder: Path) -> None:
    (folder / "ca.crt").unlink()

    assert Identity(folder, is_public=True).current().authorities == b""


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tls.crt", b"", "holds no certificate in PEM"),
        ("ca.crt", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END", "holds no certificate in PEM"),
        ("tls.key", b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n", "holds no private key in PEM"),
        ("tls.crt", b"x" * (MAX_FILE_BYTES + 1), "is larger than"),
    ],
)
def test_a_broken_file_is_named_without_its_content(
    folder: Path, name: str, content: bytes, said: str
) -> None:
    (folder / name).unlink()
    (folder / name).write_bytes(content)

    assert refusal(folder).startswith(f"The file {folder / name} {said}")
    assert "c2VjcmV0" not in refusal(folder)


@pytest.mark.parametrize(
    "key",
    [
        Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP521R1()),
        rsa.generate_private_key(65537, 1024),
    ],
    ids=["Ed25519", "P-521", "RSA 1024"],
)
def test_a_key_that_no_connection_can_be_made_with_is_refused(
    folder: Path, authority: Authority, key: PrivateKeyTypes
) -> None:
    encoding, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    content = key.private_bytes(encoding, kind, serialization.NoEncryption())
    publish(folder, {**files_of(authority), "tls.key": content})

    assert "is of a kind that gRPC makes no connection with; use ECDSA" in refusal(folder)


def test_a_key_of_another_certificate_is_refused(folder: Path, authority: Authority) -> None:
    publish(folder, {**files_of(authority), "tls.key": files_of(authority)["tls.key"]})

    assert "belongs to another certificate" in refusal(folder)


@pytest.mark.parametrize(
    ("validity", "said"), [(ENDED, " ended at "), (AHEAD, " begins at ")], ids=["ended", "ahead"]
)
def test_a_certificate_outside_its_time_is_refused(
    folder: Path, authority: Authority, validity: Validity, said: str
) -> None:
    publish(folder, files_of(authority, validity=validity))

    assert said in refusal(folder)


@pytest.mark.parametrize("name", ["experts.elsewhere", "a.experts.understudy", "understudy"])
def test_a_certificate_must_name_a_component_of_the_domain(
    folder: Path, authority: Authority, name: str
) -> None:
    publish(folder, files_of(authority, name))

    assert "has no DNS name <component>.understudy" in refusal(folder)


def test_a_component_is_the_one_label_before_the_domain() -> None:
    names = ["x.other", "experts.eu.prod", "kvstore.prod", "router.prod", "prod"]
    assert components_of(names, "prod") == {"kvstore", "router"}
    assert components_of(["experts.eu.prod"], "eu.prod") == {"experts"}


def test_a_new_set_is_in_use_at_once(folder: Path, authority: Authority) -> None:
    identity = Identity(folder, DOMAIN)
    former = identity.channel_credentials()
    assert identity.channel_credentials() is former

    publish(folder, files_of(authority, "kvstore.understudy"))

    assert identity.current().names == {"kvstore.understudy"}
    assert identity.channel_credentials() is not former


@pytest.mark.parametrize("broken", [{"tls.key": b"half"}, {"tls.crt": b""}, {"ca.crt": b""}])
def test_a_broken_set_leaves_the_one_in_use_and_is_told_once(
    folder: Path,
    authority: Authority,
    caplog: pytest.LogCaptureFixture,
    broken: dict[str, bytes],
) -> None:
    identity = Identity(folder, DOMAIN)
    refused: list[bool] = []
    identity.subscribe(lambda: refused.append(True))
    former = identity.current()

    publish(folder, {**files_of(authority), **broken})
    with caplog.at_level(logging.INFO):
        assert [identity.current() for _ in range(3)] == [former] * 3
    assert refused == [True]
    assert [record.message.split(".")[0] for record in caplog.records] == [
        "The new certificates cannot be used; those in use stay"
    ]
    assert "PRIVATE KEY" not in caplog.text

    publish(folder, files_of(authority))
    assert identity.current() is not former
    assert refused == [True]


def test_a_set_that_begins_later_is_in_use_once_it_has_begun(
    folder: Path, authority: Authority
) -> None:
    now, clock_s = [NOW], [0.0]
    identity = Identity(folder, DOMAIN, now=lambda: now[-1], clock_s=lambda: clock_s[-1])
    former = identity.current()

    publish(folder, files_of(authority, validity=AHEAD))
    assert identity.current() is former
    now.append(NOW + timedelta(days=1, minutes=1))
    clock_s.append(RETRY_S)

    assert identity.current() is not former


def test_a_key_that_may_be_read_later_is_in_use_then(
    folder: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_s = [0.0]
    identity = Identity(folder, DOMAIN, clock_s=lambda: clock_s[-1])
    former = identity.current()

    opened = Path.open

    def refuse(path: Path, *mode: str) -> object:
        if path.name == "tls.key":
            raise PermissionError(13, "Permission denied")
        return opened(path, *mode)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)  # who runs tests may read everything
        publish(folder, files_of(authority))
        assert identity.current() is former
    clock_s.append(RETRY_S)

    assert identity.current() is not former


def test_a_missing_folder_leaves_the_set_in_use(folder: Path) -> None:
    identity = Identity(folder, DOMAIN)
    former = identity.current()

    folder.rename(folder.with_name("away"))

    assert identity.current() is former


def test_files_that_change_while_they_are_read_are_read_again(
    folder: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = [files_of(authority), files_of(authority)]
    opened = Path.open
    published = []

    def open_and_change(path: Path, *mode: str) -> object:
        file = opened(path, *mode)
        if path.name == "tls.key" and fresh:
            published.append(fresh.pop())
            publish(folder, published[-1])
        return file

    monkeypatch.setattr(Path, "open", open_and_change)
    found = read_certificates(folder, NOW)

    assert len(published) == 2
    assert (found.chain, found.key) == (published[-1]["tls.crt"], published[-1]["tls.key"])


def test_what_remains_is_negative_once_the_certificate_has_ended(folder: Path) -> None:
    times = [NOW]
    identity = Identity(folder, DOMAIN, now=lambda: times[-1])
    assert 86_399 <= identity.remaining_s <= 86_400

    times.append(NOW + timedelta(days=3))

    assert -172_801 <= identity.remaining_s <= -172_800
