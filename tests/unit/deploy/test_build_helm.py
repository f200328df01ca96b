"""The tool that finds or builds Helm, with scripts in place of Helm and Go."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.cluster.building import build_command
from deploy.tools.build_helm import VERSION, cached_helm, find_helm, main, pinned_helm

Program = Callable[[str, str], Path]


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
    return {"PATH": str(tmp_path / "bin"), "XDG_CACHE_HOME": str(tmp_path / "cache")}


GO = """
PATH=/usr/bin:/bin
case "$1" in
  env) echo go1.26.8 ;;
  build)
    echo helm.sh/helm/v3/pkg/cli >&2
    while [ "$1" != -o ]; do shift; done
    printf "#!/bin/sh\\necho v3.19.5\\n" > "$2"
    chmod +x "$2" ;;
esac
"""


def test_a_recent_helm_on_the_path_is_taken(program: Program, environ: dict[str, str]) -> None:
    helm = program("helm", "echo v3.14.0")
    assert find_helm(environ) == helm


@pytest.mark.parametrize("answer", ["echo v3.13.9", "echo v2.17.0", "echo broken", "exit 1"])
def test_a_helm_that_is_too_old_or_broken_is_passed_over(
    program: Program, environ: dict[str, str], answer: str
) -> None:
    program("helm", answer)
    assert find_helm(environ) is None


def test_helm_is_built_once_and_found_in_the_cache(
    program: Program, environ: dict[str, str]
) -> None:
    lines: list[str] = []
    go = program("go", GO)
    assert main(environ, lines.append) == 0
    assert find_helm(environ) == cached_helm(environ)
    go.unlink()
    assert main(environ, lines.append) == 0
    assert lines[-1] == f"helm: {cached_helm(environ)}"
    assert [path.name for path in cached_helm(environ).parent.iterdir()] == ["helm"]


@pytest.mark.parametrize(("ci", "status"), [({}, 0), ({"CI": "true"}, 1)])
def test_without_helm_and_go_chart_tests_are_skipped_but_ci_fails(
    environ: dict[str, str], ci: dict[str, str], status: int
) -> None:
    lines: list[str] = []
    assert main({**environ, **ci}, lines.append) == status
    assert "neither Helm 3.14 or newer nor Go is installed" in lines[-1]


@pytest.mark.parametrize(("ci", "status"), [({}, 0), ({"CI": "true"}, 1)])
def test_a_failed_build_tells_what_go_said_and_leaves_nothing(
    program: Program, environ: dict[str, str], ci: dict[str, str], status: int
) -> None:
    program("go", GO.replace("build)", "mod) echo no such module >&2; exit 3 ;; build)"))
    lines: list[str] = []
    assert main({**environ, **ci}, lines.append) == status
    assert "go mod tidy ended with status 3\nno such module" in lines[-1]
    assert not cached_helm(environ).exists()
    assert list(cached_helm(environ).parents[1].iterdir()) == []


def test_the_build_is_told_its_version_and_a_kubernetes_the_chart_accepts() -> None:
    helm = pinned_helm()
    [package] = helm.commands.values()
    flags = " ".join(build_command("go", helm, Path("/out"), package))
    assert f"internal/version.version={VERSION}" in flags
    assert flags.count("k8sVersionMinor=34") == 2
    assert flags.endswith("helm.sh/helm/v3/cmd/helm")
