"""Certificates for installations without cert-manager: what each step leaves behind."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import pytest
from cryptography import x509

from deploy.certificates import COMPONENTS, Installation, main, publish
from understudy.serving import Identity


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    main(["make", str(made), "--domain", "eu.prod", "--days", "30"])
    return made


def certificates(folder: Path, name: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates((folder / name).read_bytes())


def issuers(folder: Path) -> set[str]:
    own = (certificates(folder / component, "tls.crt")[0] for component in COMPONENTS)
    return {one.issuer.rfc4514_string() for one in own}


def trusted(folder: Path) -> list[str]:
    [names] = {
        tuple(one.subject.rfc4514_string() for one in certificates(folder / each, "ca.crt"))
        for each in COMPONENTS
    }
    return list(names)


@pytest.mark.parametrize("component", COMPONENTS)
def test_each_component_gets_a_set_that_services_take(folder: Path, component: str) -> None:
    identity = Identity(folder / component, "eu.prod")

    assert identity.current().names == {f"{component}.eu.prod"}
    assert 29 * 86_400 < identity.remaining_s <= 30 * 86_400
    [own] = certificates(folder / component, "tls.crt")
    [authority] = certificates(folder / component, "ca.crt")
    own.verify_directly_issued_by(authority)
    usage = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {each.dotted_string[-1] for each in usage} == {"1", "2"}


def test_only_the_owner_reads_keys(folder: Path) -> None:
    keys = [path for path in folder.rglob("*.key") if not path.is_symlink()]
    assert len(keys) == len(COMPONENTS) + 1
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}


def test_a_folder_in_use_is_not_made_again(folder: Path) -> None:
    with pytest.raises(SystemExit, match="is not empty"):
        main(["make", str(folder)])


def test_renewing_keeps_the_authority(folder: Path) -> None:
    before = {each: (folder / each / "tls.crt").read_bytes() for each in COMPONENTS}
    authority = trusted(folder)

    main(["renew", str(folder)])

    assert trusted(folder) == authority
    assert all((folder / each / "tls.crt").read_bytes() != before[each] for each in COMPONENTS)


def test_an_authority_is_replaced_in_three_steps(folder: Path) -> None:
    [former] = trusted(folder)

    main(["trust", str(folder)])
    both = trusted(folder)
    assert both[0] == former and len(both) == 2
    assert issuers(folder) == {former}

    main(["switch", str(folder)])
    assert trusted(folder) == both
    assert issuers(folder) == {both[1]}

    main(["finish", str(folder)])
    assert trusted(folder) == [both[1]]
    assert not Installation(folder).is_rotating
    main(["renew", str(folder)])
    assert issuers(folder) == {both[1]}


@pytest.mark.parametrize(
    ("before", "step", "said"),
    [
        ([], "switch", "have one trusted first"),
        ([], "finish", "have one trusted first"),
        (["trust"], "trust", "trusted already"),
        (["trust"], "finish", "switch first"),
        (["trust", "switch", "renew"], "finish", "switch first"),
    ],
)
def test_steps_out_of_order_are_refused(
    folder: Path, before: list[str], step: str, said: str
) -> None:
    for earlier in before:
        main([earlier, str(folder)])
    with pytest.raises(SystemExit, match=said):
        main([step, str(folder)])


def test_secrets_are_what_kubectl_takes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["secrets", str(folder), "--name", "tls", "--namespace", "prod"])

    listed = json.loads(capsys.readouterr().out)
    assert [one["metadata"]["name"] for one in listed["items"]] == [f"tls-{c}" for c in COMPONENTS]
    for component, secret in zip(COMPONENTS, listed["items"], strict=True):
        assert secret["type"] == "kubernetes.io/tls"
        assert secret["metadata"]["namespace"] == "prod"
        data = {name: base64.b64decode(value) for name, value in secret["data"].items()}
        assert data == {
            name: (folder / component / name).read_bytes()
            for name in ("tls.crt", "tls.key", "ca.crt")
        }


def test_a_folder_without_certificates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="make them first"):
        main(["renew", str(tmp_path)])


def test_files_are_replaced_together_and_former_ones_removed(tmp_path: Path) -> None:
    publish(tmp_path, {"a": b"1", "b": b"1"})
    publish(tmp_path, {"a": b"2", "b": b"2"})

    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"2", b"2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["..data", "..v2", "a", "b"]
