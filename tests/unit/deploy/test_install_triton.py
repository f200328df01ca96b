"""The tool that unpacks Triton, with folders in place of the wheel."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.tools import install_triton
from deploy.tools.install_triton import InstallError, check_libraries, check_platform, main
from understudy.local.triton.installation import Installation, cached_triton

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path)}


def unpack(folder: Path, version: str = VERSION) -> None:
    """What pip leaves of the wheel, with a working binary in place of both."""
    draft = Installation(folder)
    for file in (draft.server, draft.stubs / version / draft.stub.name):
        file.parent.mkdir(parents=True)
        file.write_bytes(Path("/bin/true").read_bytes())
    draft.stub.parent.mkdir(parents=True)
    draft.libraries.mkdir()


@pytest.mark.skipif(sys.platform != "linux", reason="runs ldd")
def test_the_server_is_unpacked_once_with_the_stub_of_this_python(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install_triton, "check_platform", lambda: None)
    monkeypatch.setattr(install_triton, "download", unpack)
    said: list[str] = []
    assert main(environ, said.append) == 0
    where = cached_triton(environ)
    assert where.stub.stat().st_mode & 0o111
    assert "once" in said[0]
    assert said[1:] == [f"triton: {where.server}"]
    monkeypatch.setattr(install_triton, "download", lambda _: pytest.fail("unpacked again"))
    assert main(environ, said.append) == 0


def test_a_python_without_a_stub_is_named(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install_triton, "check_platform", lambda: None)
    monkeypatch.setattr(install_triton, "download", lambda folder: unpack(folder, "2.7"))
    said: list[str] = []
    assert main(environ, said.append) == 1
    assert f"no stub for Python {VERSION}; it has 2.7" in said[-1]
    assert not cached_triton(environ).root.exists()


@pytest.mark.parametrize(
    ("system", "libc", "words"),
    [
        (("Darwin", "arm64"), ("", ""), "this is Darwin arm64"),
        (("Linux", "aarch64"), ("glibc", "2.39"), "this is Linux aarch64"),
        (("Linux", "x86_64"), ("glibc", "2.31"), "glibc 2.31"),
        (("Linux", "x86_64"), ("", ""), "no glibc"),
    ],
)
def test_a_platform_without_a_binary_is_named(system, libc, words, monkeypatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: system[0])
    monkeypatch.setattr(platform, "machine", lambda: system[1])
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    with pytest.raises(InstallError, match=words):
        check_platform()


def test_what_pip_says_is_passed_on(environ: dict[str, str], monkeypatch) -> None:
    def fail(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess(command, 1, "", "no such release")

    monkeypatch.setattr(install_triton, "check_platform", lambda: None)
    monkeypatch.setattr(subprocess, "run", fail)
    said: list[str] = []
    assert main(environ, said.append) == 1
    assert "no such release" in said[-1]


def test_a_missing_library_is_named(monkeypatch, tmp_path: Path) -> None:
    def lacking(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess(command, 0, "\tlibpython3.11.so.1.0 => not found\n", "")

    monkeypatch.setattr(subprocess, "run", lacking)
    with pytest.raises(InstallError, match=r"lacks libpython3\.11"):
        check_libraries(tmp_path / "stub")
