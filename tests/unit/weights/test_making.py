"""What other programs make is published whole, and what is finished is not made again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from understudy.errors import FailedPrecondition
from understudy.weights.__main__ import FAILED, main
from understudy.weights.making import FILES
from understudy.weights.store import Store
from understudy.weights.waiting import lacks

FOLDER, OTHER = (f"packages-{digit * 16}" for digit in "01")
WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"


def begin(volume: Path, work: str, folder: str = FOLDER) -> Path:
    store = Store(volume)
    store.workshop.begin(folder, work)
    return store.workshop.part(work, FILES)


def step(volume: Path, work: str, part: str, *program: str) -> int:
    return main(["step", str(volume), FOLDER, work, part, sys.executable, "-c", *program])


def writing(volume: Path, work: str, part: str, text: str) -> int:
    """A step that writes one file."""
    home = Store(volume).workshop.part(work, part)
    home.mkdir(exist_ok=True)
    return step(volume, work, part, WRITE, str(home / "made"), text)


def test_what_another_program_made_is_published_once(volume: Path) -> None:
    store = Store(volume)
    for content, is_new in ((b"first", True), (b"second", False)):
        home = begin(volume, "packages-x1")
        assert not list(home.iterdir())
        (home / "model" / "1").mkdir(parents=True)
        (home / "model" / "1" / "package.json").write_bytes(content)
        assert store.adopt(FOLDER, "packages-x1") is is_new
        assert not list((volume / ".fetching" / "made").iterdir())
    assert (volume / FOLDER / "model" / "1" / "package.json").read_bytes() == b"first"
    assert lacks(volume, FOLDER) == ""
    begin(volume, "packages-x1", OTHER)
    with pytest.raises(FailedPrecondition, match="0 files"):
        store.adopt(OTHER, "packages-x1")


def test_what_was_damaged_is_replaced_by_what_a_job_made_again(volume: Path) -> None:
    store = Store(volume)
    for content in (b"first", b"made again"):
        (begin(volume, "packages-x1") / "weights").write_bytes(content)
        assert store.adopt(FOLDER, "packages-x1")
        assert store.is_whole(FOLDER)
        assert (volume / FOLDER / "weights").read_bytes() == content
        (volume / FOLDER / "weights").write_bytes(b"rotten")
        assert not store.is_whole(FOLDER)


def test_who_begins_last_has_the_volume_and_who_began_before_publishes_nothing(
    volume: Path,
) -> None:
    store = Store(volume)
    first = begin(volume, "packages-x1")
    (first / "weights").write_bytes(b"first")
    (begin(volume, "packages-x2") / "weights").write_bytes(b"second")
    assert not first.exists()
    with pytest.raises(FailedPrecondition, match="0 files"):
        store.adopt(FOLDER, "packages-x1")
    assert store.adopt(FOLDER, "packages-x2")


def test_the_next_pod_takes_over_what_was_finished_and_begins_the_rest_anew(
    volume: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = Store(volume)
    begin(volume, "packages-x1")
    assert writing(volume, "packages-x1", "bundle", "exported") == 0
    (store.workshop.part("packages-x1", FILES) / "half").touch()
    assert step(volume, "packages-x1", FILES, "raise SystemExit(7)") == 7

    home = begin(volume, "packages-x2")
    assert not list(home.iterdir())
    assert step(volume, "packages-x2", "bundle", "raise SystemExit(8)") == 0
    assert "bundle was finished before" in capfd.readouterr().err
    made = store.workshop.part("packages-x2", "bundle") / "made"
    assert made.read_text() == "exported"
    assert writing(volume, "packages-x2", FILES, "compiled") == 0

    begin(volume, "packages-x3")
    assert step(volume, "packages-x3", FILES, "raise SystemExit(9)") == 0
    assert store.adopt(FOLDER, "packages-x3")
    assert (volume / FOLDER / "made").read_text() == "compiled"
    assert step(volume, "packages-x3", "bundle", "raise SystemExit(9)") == 0


def test_a_pod_whose_containers_run_again_keeps_its_own_parts(volume: Path) -> None:
    begin(volume, "packages-x1")
    assert writing(volume, "packages-x1", "bundle", "exported") == 0
    (Store(volume).workshop.part("packages-x1", FILES) / "half").touch()
    assert not list(begin(volume, "packages-x1").iterdir())
    assert Store(volume).workshop.is_finished("packages-x1", "bundle")


def test_what_was_finished_for_another_folder_or_changed_since_is_made_again(volume: Path) -> None:
    store = Store(volume)
    begin(volume, "packages-x1", OTHER)
    assert writing(volume, "packages-x1", "bundle", "of another model") == 0
    begin(volume, "packages-x2")
    assert not store.workshop.is_finished("packages-x2", "bundle")

    assert writing(volume, "packages-x2", "bundle", "exported") == 0
    (store.workshop.part("packages-x2", "bundle") / "made").write_text("torn")
    begin(volume, "packages-x3")
    assert not store.workshop.is_finished("packages-x3", "bundle")
    assert writing(volume, "packages-x3", "bundle", "exported") == 0
    (volume / ".fetching" / "made" / "packages-x3" / "bundle.done").write_text("[" * 200_000)
    assert not store.workshop.is_finished("packages-x3", "bundle")


def test_a_step_that_a_signal_ends_fails_and_one_without_a_program_is_refused(
    volume: Path,
) -> None:
    begin(volume, "packages-x1")
    assert step(volume, "packages-x1", "bundle", "import os; os.kill(os.getpid(), 9)") == FAILED
    assert main(["step", str(volume), FOLDER, "packages-x1", "bundle"]) == 2


def test_what_packages_have_in_common_is_one_file(volume: Path) -> None:
    store = Store(volume)
    for folder, own in ((FOLDER, b"old"), (OTHER, b"new")):
        home = begin(volume, "packages-x1", folder)
        (home / "weights").write_bytes(b"the same")
        (home / "program").write_bytes(own)
        assert store.adopt(folder, "packages-x1")
        assert store.is_whole(folder)
    assert (volume / FOLDER / "weights").samefile(volume / OTHER / "weights")
    assert (volume / OTHER / "program").read_bytes() == b"new"
