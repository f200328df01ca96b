"""The tool that finds or builds Prometheus, with a script in place of Go."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.cluster.tools import binaries_folder
from deploy.telemetry.build_prometheus import PROMETHEUS, TOOLS, find_tool, main
from tests.telemetry.tools import tool

Program = Callable[[str, str], Path]
KNOWS_ITS_VERSION = 'if [ "$1" = env ]; then echo go1.26.0; exit 0; fi\n'
BUILDS = KNOWS_ITS_VERSION + (
    'PATH=/usr/bin:/bin; [ "$1" = build ] || { cp go.mod "$HOME/seen.mod"; exit 0; }\n'
    'while [ "$1" != -o ]; do shift; done; echo built > "$2"'
)


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Write an executable script into the only folder on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def write(name: str, body: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return write


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    home, cache = str(tmp_path), str(tmp_path / "cache")
    return {"PATH": str(tmp_path / "bin"), "HOME": home, "XDG_CACHE_HOME": cache}


def test_the_pinned_tools_are_built_once_and_found_again(
    program: Program, environ: dict[str, str], tmp_path: Path
) -> None:
    lines: list[str] = []
    go = program("go", BUILDS)
    assert main(environ, lines.append) == 0
    assert sorted(path.name for path in binaries_folder(PROMETHEUS, environ).iterdir()) == sorted(
        TOOLS
    )
    assert PROMETHEUS.version in (tmp_path / "seen.mod").read_text()
    go.unlink()
    assert main(environ, lines.append) == 0
    assert find_tool("promtool", environ) == binaries_folder(PROMETHEUS, environ) / "promtool"


def test_tools_on_the_path_are_taken_where_none_was_built(
    program: Program, environ: dict[str, str]
) -> None:
    assert find_tool("promtool", environ) is None
    paths = {name: program(name, "exit 0") for name in TOOLS}
    assert {name: find_tool(name, environ) for name in TOOLS} == paths
    assert main(environ, lambda _: None) == 0


def test_without_go_it_says_what_is_needed(environ: dict[str, str]) -> None:
    lines: list[str] = []
    assert main(environ, lines.append) == 1
    assert "Go 1.26.0 or newer is needed" in lines[-1]


def test_a_build_that_breaks_leaves_nothing(program: Program, environ: dict[str, str]) -> None:
    lines: list[str] = []
    program("go", KNOWS_ITS_VERSION + "exit 3")
    assert main(environ, lines.append) == 1
    assert "not built" in lines[-1]
    assert list(binaries_folder(PROMETHEUS, environ).parent.iterdir()) == []


def test_a_build_is_not_begun_without_time_for_it(
    program: Program, environ: dict[str, str]
) -> None:
    lines: list[str] = []
    program("go", BUILDS)
    assert main(environ, lines.append, 0.0) == 1
    assert "was not built in the time there was" in lines[-1]


def test_without_a_binary_a_test_is_skipped_and_in_ci_with_go_it_fails(
    program: Program, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.skip.Exception, match="needs promtool"):
        tool("promtool")
    program("go", BUILDS)
    with pytest.raises(pytest.fail.Exception, match="needs promtool"):
        tool("promtool")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="needs promtool"):
        tool("promtool")
