"""Certificates for installations without cert-manager: what each step leaves behind."""

from __future__ import annotations

import base64
import json
import shutil
import stat
from pathlib import Path

import pytest
from cryptography import x509

import deploy.certificates
from deploy.certificates import COMPONENTS, Installation, main, publish
from understudy.serving import Identity


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    main(["make", str(made), "--domain", "eu.prod", "--days", "30"])
    return made


def certificates(folder: Path, name: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates((folder / name).read_bytes())


def components(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/tls.crt"))


def issuers(folder: Path) -> set[str]:
    own = (certificates(component, "tls.crt")[0] for component in components(folder))
    return {one.issuer.rfc4514_string() for one in own}


def trusted(folder: Path) -> list[str]:
    [names] = {
        tuple(one.subject.rfc4514_string() for one in certificates(each, "ca.crt"))
        for each in components(folder)
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


class Interrupted(Exception):
    """Stands for the end of the process."""


def interrupt(monkeypatch: pytest.MonkeyPatch, num_changes: int) -> None:
    """Let so many files be put in place or removed, and end before the next one."""
    left = iter(range(num_changes))
    replace, unlink = Path.replace, Path.unlink

    def step() -> None:
        if next(left, None) is None:
            raise Interrupted

    def replacing(path: Path, target: Path) -> Path:
        step()
        return replace(path, target)

    def unlinking(path: Path, missing_ok: bool = False) -> None:
        step()
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "replace", replacing)
    monkeypatch.setattr(Path, "unlink", unlinking)


@pytest.mark.parametrize("steps", [["trust"], ["trust", "switch"], ["trust", "switch", "finish"]])
def test_a_step_that_is_interrupted_anywhere_can_be_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[str]
) -> None:
    monkeypatch.setattr(deploy.certificates, "COMPONENTS", ("router", "experts"))
    folder = tmp_path / "made"
    for earlier in ("make", *steps[:-1]):
        main([earlier, str(folder)])
    was_interrupted, num_changes = True, 0
    while was_interrupted:
        tried = tmp_path / f"tried-{num_changes}"
        shutil.copytree(folder, tried, symlinks=True)
        was_interrupted = ends_early(tried, steps[-1], num_changes)
        for component in components(tried):
            Identity(component, "understudy")
        if was_interrupted and not is_done(tried, steps[-1]):
            main([steps[-1], str(tried)])
        assert is_done(tried, steps[-1])
        main(["renew", str(tried)])
        kept = [len(list(component.glob("..v*"))) for component in components(tried)]
        assert kept == [1, 1]
        num_changes += 1
    assert num_changes > 8


def ends_early(folder: Path, step: str, num_changes: int) -> bool:
    """Give a step and end it after so many changes; returns whether there were more to make."""
    with pytest.MonkeyPatch.context() as patched:
        interrupt(patched, num_changes)
        try:
            main([step, str(folder)])
        except Interrupted:
            return True
    return False


def is_done(folder: Path, step: str) -> bool:
    """Whether a folder is what a step leaves behind when nothing interrupts it."""
    authorities = Installation(folder).authorities
    current = certificates(authorities, "current.crt")[0].subject.rfc4514_string()
    try:
        names = trusted(folder)
    except ValueError:  # components differ
        return False
    if step == "finish":
        return (
            names == [current]
            and issuers(folder) == {current}
            and not Installation(folder).is_rotating
        )
    if not Installation(folder).is_rotating:
        return False
    new = certificates(authorities, "next.crt")[0].subject.rfc4514_string()
    return names == [current, new] and issuers(folder) == {new if step == "switch" else current}


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
