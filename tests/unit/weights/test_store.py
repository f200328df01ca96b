"""The volume: what is published stays until nobody can want it, and foreign folders are left."""

from __future__ import annotations

from pathlib import Path

import pytest

from understudy.errors import DeadlineExceeded, Unavailable
from understudy.weights.contents import parse_sums
from understudy.weights.store import RECORD, Store, read_record
from understudy.weights.waiting import lacks, wait_for

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
OLD, MID, NEW = (f"llm-{digit * 16}" for digit in "012")


def _publish(volume: Path, folder: str) -> None:
    store = Store(volume)
    (store.checked(folder) / "weights").touch()
    store.publish(folder, parse_sums(f"{EMPTY}  weights"))


def test_the_folders_of_the_run_before_stay_and_older_ones_go(volume: Path) -> None:
    store = Store(volume)
    for wanted in (OLD, MID, MID, NEW):
        with store.locked():
            _publish(volume, wanted)
            removed = store.prune("demo", [wanted])
    assert removed == [OLD]
    assert {path.name for path in volume.iterdir()} == {".fetching", MID, NEW}


def test_what_runs_is_not_removed_by_a_run_that_follows_one_that_failed(volume: Path) -> None:
    store = Store(volume)
    store.want("demo", [OLD])
    _publish(volume, OLD)
    assert store.prune("demo", [OLD]) == []
    store.want("demo", [MID])
    (store.parts(MID) / "half").touch()
    store.want("demo", [NEW])
    assert not (volume / ".fetching" / MID).exists()
    assert (volume / OLD / "weights").is_file()
    _publish(volume, NEW)
    assert store.prune("demo", [NEW]) == []
    assert {path.name for path in volume.iterdir()} == {".fetching", OLD, NEW}


def test_what_a_failed_run_published_stays_as_long_as_what_ran_then(volume: Path) -> None:
    store = Store(volume)
    half = "slm-3333333333333333"
    _publish(volume, OLD)
    store.prune("demo", [OLD])
    store.want("demo", [half, MID])
    _publish(volume, half)
    _publish(volume, NEW)
    assert store.prune("demo", [NEW]) == []
    _publish(volume, MID)
    assert store.prune("demo", [MID]) == [OLD, half]


def test_what_another_owner_wants_or_nobody_named_is_left_alone(volume: Path) -> None:
    foreign = {"mine", "llm-ffffffffffffffff"}
    for name in foreign:
        (volume / name).mkdir()
    store = Store(volume)
    for owner, wanted in (("other", OLD), ("demo", OLD), ("demo", MID), ("demo", NEW)):
        _publish(volume, wanted)
        assert store.prune(owner, [wanted]) == []
    assert {path.name for path in volume.iterdir()} == {*foreign, OLD, MID, NEW, ".fetching"}


def test_parts_of_what_is_not_wanted_any_more_are_removed(volume: Path) -> None:
    store = Store(volume)
    store.want("demo", [OLD])
    (store.parts(OLD) / "half").touch()
    store.want("demo", [NEW])
    assert not (volume / ".fetching" / OLD).exists()


def test_a_full_volume_gives_up_what_only_a_rollback_would_want(volume: Path) -> None:
    store = Store(volume)
    foreign, half = "other-4444444444444444", "slm-3333333333333333"
    for owner, wanted in (("demo", OLD), ("demo", MID), ("rival", foreign), ("demo", half)):
        store.want(owner, [wanted])
        _publish(volume, wanted)
        if wanted != half:
            store.prune(owner, [wanted])
    store.want("demo", [NEW])
    assert store.make_room("demo", [NEW]) == [OLD, half]
    assert store.make_room("demo", [NEW]) == []
    assert {path.name for path in volume.iterdir()} == {".fetching", MID, foreign}
    _publish(volume, NEW)
    assert store.prune("demo", [NEW]) == []
    assert {path.name for path in volume.iterdir()} == {".fetching", MID, NEW, foreign}


def test_a_history_cannot_name_what_is_no_folder(volume: Path) -> None:
    store = Store(volume)
    home = volume / ".fetching" / "wanted"
    home.mkdir(parents=True)
    (volume / "mine").mkdir()
    (home / "demo").write_text('{"now": [], "before": ["mine", "../x", 3], "tried": [""]}')
    assert store.prune("demo", [NEW]) == []
    assert (volume / "mine").is_dir()


def test_a_broken_record_of_former_runs_is_none(volume: Path) -> None:
    store = Store(volume)
    home = volume / ".fetching" / "wanted"
    home.mkdir(parents=True)
    (home / "demo").write_text('{"now": 3')
    assert store.prune("demo", [NEW]) == []


def test_two_jobs_do_not_work_in_one_volume(volume: Path) -> None:
    first, second = Store(volume).locked(), Store(volume).locked()
    with first, pytest.raises(Unavailable, match="Another Job"), second:
        pytest.fail("both work there")


def test_a_worker_is_held_back_until_its_weights_are_published(
    volume: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            _publish(volume, NEW)

    wait_for(volume, [NEW], limit_s=100, sleep=sleep, clock=lambda: sum(waited))
    assert len(waited) == 2
    assert caplog.messages == [
        f"Waiting for weights: {NEW} is not published yet.",
        f"The weights are there: {NEW}.",
    ]


def test_a_worker_that_waits_too_long_says_for_what(volume: Path) -> None:
    waited: list[float] = []
    with pytest.raises(DeadlineExceeded, match=f"{NEW} is not published yet"):
        wait_for(volume, [NEW], limit_s=5, sleep=waited.append, clock=lambda: sum(waited))


def test_a_worker_does_not_start_from_a_file_that_changed_its_size(volume: Path) -> None:
    _publish(volume, NEW)
    assert lacks(volume, NEW) == ""
    (volume / NEW / "weights").write_bytes(b"more")
    assert "weights is not what was checked" in lacks(volume, NEW)
    (volume / NEW / RECORD).write_text("{")
    assert "not published" in lacks(volume, NEW)


def test_a_record_that_is_nested_too_deeply_is_none(volume: Path) -> None:
    (volume / NEW).mkdir()
    (volume / NEW / RECORD).write_text("[" * 200_000)
    assert read_record(volume / NEW) is None
