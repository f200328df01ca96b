"""Which engine builds, and with which command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

from deploy.images import build
from deploy.images.build import EngineError, Source, ask, command, find_engine, main, read_source
from deploy.images.targets import TARGETS

SOURCE = Source("1.2.3", "0123456789ab-dirty")


def test_it_knows_the_targets_of_the_dockerfile() -> None:
    assert tuple(target.name for target in TARGETS) == build.TARGETS


def test_the_first_engine_that_works_is_taken() -> None:
    def broken_docker(question: Sequence[str]) -> str | None:
        return "no daemon" if question[0] == "docker" else None

    assert find_engine(lambda name: name, lambda _: None) == "docker"
    assert find_engine(lambda name: name, broken_docker) == "podman"
    assert find_engine(lambda name: name if name == "buildah" else None, broken_docker) == "buildah"


def test_without_an_engine_each_ones_reason_is_told() -> None:
    with pytest.raises(EngineError) as caught:
        find_engine(lambda name: name if name == "docker" else None, lambda _: "no daemon")
    for part in ("docker does not work (no daemon)", "podman is not installed", "make images"):
        assert part in str(caught.value)


def test_an_image_is_tagged_by_version_and_commit() -> None:
    found = command("podman", "router", "registry.example/understudy", SOURCE)
    assert found[:2] == ["podman", "build"]
    tags = [found[index + 1] for index, word in enumerate(found) if word == "--tag"]
    assert tags == [
        "registry.example/understudy-router:1.2.3",
        "registry.example/understudy-router:1.2.3-g0123456789ab-dirty",
    ]
    assert found[found.index("--target") + 1] == "router"


@pytest.mark.parametrize("target", build.TARGETS)
def test_an_image_says_what_it_is(target: str) -> None:
    found = command("podman", target, "registry.example/understudy", SOURCE)
    labels = [found[index + 1] for index, word in enumerate(found) if word == "--label"]
    prefix = "org.opencontainers.image."
    assert [one.removeprefix(prefix) for one in labels if "licenses" not in one] == [
        f"title=understudy-{target}",
        "version=1.2.3",
        "revision=0123456789ab-dirty",
    ]
    assert (f"{prefix}licenses=Apache-2.0" in labels) == (target != "triton")


def test_outside_a_repository_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_source().revision
    monkeypatch.setenv("PATH", "/nowhere")
    source = read_source()
    assert source.revision == ""
    assert source.tags == (source.version,)


def test_an_engine_is_asked_and_its_last_words_are_kept() -> None:
    assert ask([sys.executable, "-c", ""]) is None
    assert ask([sys.executable, "-c", "raise SystemExit('first\\nlast')"]) == "last"
    assert ask(["/no/such/engine"]) is not None


def test_a_build_that_fails_stops_with_its_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "find_engine", lambda *_: "docker")
    monkeypatch.setattr(build, "command", lambda *_: ["false"])
    monkeypatch.setattr(build, "read_source", lambda: SOURCE)
    assert main(["worker"], {}) == 1
    assert "The image worker was not built: docker exited with 1." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environ", "built"),
    [
        ({}, ["router", "worker", "distiller"]),
        ({"TRITON_IMAGE": "server:1"}, ["router", "worker", "distiller", "triton"]),
    ],
)
def test_without_a_base_triton_is_left_out_and_the_others_are_built(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environ: dict[str, str],
    built: list[str],
) -> None:
    found = []

    def noted(_: str, target: str, *rest: object) -> list[str]:
        found.append(target)
        return ["true"]

    monkeypatch.setattr(build, "find_engine", lambda *_: "docker")
    monkeypatch.setattr(build, "command", noted)
    monkeypatch.setattr(build, "read_source", lambda: SOURCE)
    assert main([], environ) == 0
    assert found == built
    said = capsys.readouterr().out
    assert ("The image triton was left out: TRITON_IMAGE names no server" in said) == (not environ)


def test_triton_is_built_on_the_base_that_is_named() -> None:
    found = command("docker", "triton", "understudy", SOURCE, "server:1")
    assert "TRITON_IMAGE=server:1" in found
    assert not any("TRITON_IMAGE" in word for word in command("docker", "router", "u", SOURCE))


def test_triton_without_a_base_is_refused_before_anything_is_built(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["triton"], {})
    assert caught.value.code == 2
    assert "the image triton needs a base: set TRITON_IMAGE" in capsys.readouterr().err


def test_an_unknown_image_is_refused_with_the_known_ones() -> None:
    done = subprocess.run(
        [sys.executable, build.__file__, "nobody"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "there is no image nobody; known: router, worker, distiller, triton" in done.stderr
