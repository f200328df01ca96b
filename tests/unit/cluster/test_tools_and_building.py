"""Pinned tools: what names their folders, and how they are built, with a script in place of Go."""

import dataclasses
import stat
from pathlib import Path

import pytest

from deploy.cluster.building import (
    BuildError,
    build_command,
    ensure_built,
    find_go,
    module_files,
    staging_replacements,
)
from deploy.cluster.tools import CONTROL_PLANE, Tool, binaries_folder, is_built

TOOL = Tool(
    "thing", "example.com/thing", "v1.2.3", {"thing": "example.com/thing/cmd"}, {"a.b": "c"}
)
FAKE_GO = """
case "$1" in
  env) echo go1.26.8 ;;
  mod) echo tidied >&2 ;;
  build)
    for i in $(seq 200); do echo "package/$i" >&2; done
    while [ "$1" != -o ]; do shift; done
    cp go.mod "$2" ;;
esac
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "bin").mkdir()
    return {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "cache")}


def install_go(environ: dict[str, str], body: str) -> Path:
    go = Path(environ["PATH"].split(":")[0]) / "go"
    go.write_text(f"#!/bin/sh\n{body}\n")
    go.chmod(go.stat().st_mode | stat.S_IXUSR)
    return go


def test_each_pin_names_another_folder(environ: dict[str, str]) -> None:
    changed = [
        TOOL,
        dataclasses.replace(TOOL, version="v1.2.4"),
        dataclasses.replace(TOOL, tags=("x",)),
        dataclasses.replace(TOOL, replacements=("a => b v1",)),
        dataclasses.replace(TOOL, linker_values={"a.b": "d"}),
    ]
    assert len({binaries_folder(tool, environ) for tool in changed}) == len(changed)


def test_tools_lie_outside_the_checkout_below_the_cache(environ: dict[str, str]) -> None:
    for tool in CONTROL_PLANE:
        assert binaries_folder(tool, environ).is_relative_to(environ["XDG_CACHE_HOME"])


def test_kubernetes_is_told_its_version_so_that_charts_with_kube_version_install() -> None:
    kubernetes = CONTROL_PLANE[1]
    command = build_command("go", kubernetes, Path("/out"), "k8s.io/kubernetes/cmd/kubectl")
    flags = command[command.index("-ldflags") + 1]
    assert "-X k8s.io/component-base/version.gitVersion=v1.34.3" in flags
    assert "-X k8s.io/client-go/pkg/version.gitMinor=34" in flags


def test_staging_modules_are_replaced_by_their_published_version() -> None:
    go_mod = "require (\n\tk8s.io/api v0.0.0\n\tk8s.io/klog/v2 v2.1.0\n\tk8s.io/kubectl v0.0.0\n)\n"
    assert staging_replacements(go_mod, "v0.34.3") == [
        "k8s.io/api => k8s.io/api v0.34.3",
        "k8s.io/kubectl => k8s.io/kubectl v0.34.3",
    ]


def test_the_module_requires_the_pinned_version_and_imports_each_command() -> None:
    files = module_files(TOOL, ["x => y v1"])
    assert "require example.com/thing v1.2.3\nreplace x => y v1\n" in files["go.mod"]
    assert 'import _ "example.com/thing/cmd"' in files["tools.go"]


def test_a_tool_is_built_once_with_progress(environ: dict[str, str]) -> None:
    install_go(environ, FAKE_GO)
    lines: list[str] = []
    folders = ensure_built([TOOL], environ, lines.append)
    assert (folders[0] / "thing").read_text().startswith("module tools/thing")
    assert any("200 packages compiled" in line for line in lines)
    lines.clear()
    assert ensure_built([TOOL], environ, lines.append) == folders
    assert lines == []


def test_a_failed_build_names_the_last_lines_and_leaves_nothing(environ: dict[str, str]) -> None:
    install_go(environ, 'if [ "$1" = env ]; then echo go1.26.8; else echo no luck >&2; exit 3; fi')
    with pytest.raises(BuildError, match="ended with status 3\nno luck"):
        ensure_built([TOOL], environ, lambda _: None)
    assert not is_built(TOOL, environ)
    assert list(Path(environ["XDG_CACHE_HOME"]).rglob("thing*")) == []


def test_a_build_that_takes_too_long_is_ended_with_its_compilers(environ: dict[str, str]) -> None:
    install_go(environ, FAKE_GO.replace("build)", "build) sleep 600 &\n echo $! > pid\n wait\n"))
    lines: list[str] = []
    with pytest.raises(BuildError, match=r"thing v1\.2\.3 was not built in the time there was"):
        ensure_built([TOOL], environ, lines.append, within_s=1.0)
    assert not is_built(TOOL, environ)
    assert list(Path(environ["XDG_CACHE_HOME"]).rglob("thing*")) == []


def test_without_go_the_refusal_says_what_to_install(environ: dict[str, str]) -> None:
    with pytest.raises(BuildError, match=r"Go is not installed.*install Go 1\.26 or newer"):
        find_go({**environ, "PATH": str(Path(environ["PATH"].split(":")[0]))})


def test_an_old_go_is_refused_by_its_version(environ: dict[str, str]) -> None:
    install_go(environ, "echo go1.22.1")
    with pytest.raises(BuildError, match=r"go1\.22\.1.*need Go 1\.26"):
        find_go(environ)
