"""The book of runs survives restarts; progress and failures are read from what a run writes."""

from pathlib import Path

import pytest

from services.distiller.executor import command, ended, progressed
from services.distiller.runs import Order, Run, RunBook
from services.distiller.settings import DistillerSettings
from understudy.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from understudy.serving import SettingsError

ORDER = Order("run-1", "adapter", num_steps=20, seed=3)


@pytest.mark.parametrize("run_id", ["", "A", "a b", "../x", "a" * 65])
def test_a_bad_run_id_is_refused(run_id: str) -> None:
    with pytest.raises(InvalidArgument, match="is not 1 to 64"):
        Order(run_id, "slm")


@pytest.mark.parametrize("num_steps", [0, 100_001])
def test_a_bad_number_of_steps_is_refused(num_steps: int) -> None:
    with pytest.raises(InvalidArgument, match="1 to 100000"):
        Order("run", "slm", num_steps=num_steps)


def test_runs_with_equal_changes_share_a_folder() -> None:
    assert Order("a", "slm").folder == Order("b", "calibrate").folder == "recipe"
    assert ORDER.folder == "steps-20-seed-3"
    assert Order("a", "slm", seed=0).folder == "seed-0"


async def test_the_same_id_returns_the_same_run(tmp_path: Path) -> None:
    book = RunBook(tmp_path, max_queued=2)
    first = await book.submit(ORDER)
    assert await book.submit(ORDER) == first
    with pytest.raises(InvalidArgument, match="exists with another stage"):
        await book.submit(Order("run-1", "slm"))


async def test_a_full_queue_is_refused_with_retry_delay(tmp_path: Path) -> None:
    book = RunBook(tmp_path, max_queued=1)
    await book.submit(ORDER)
    with pytest.raises(ResourceExhausted) as caught:
        await book.submit(Order("run-2", "slm"))
    assert caught.value.retry_after_s > 0


async def test_a_run_that_was_running_is_queued_again_after_a_restart(tmp_path: Path) -> None:
    book = RunBook(tmp_path, max_queued=2)
    await book.submit(ORDER)
    running = await book.next_queued()
    await book.update(progressed(running, b'{"done": 4, "total": 20, "loss": 1.5}'))
    again = RunBook(tmp_path, max_queued=2).get("run-1")
    assert (again.state, again.step, again.loss) == ("queued", 4, 1.5)


async def test_runs_start_in_the_order_of_submission(tmp_path: Path) -> None:
    book = RunBook(tmp_path, max_queued=5)
    for name in ("b", "a", "c"):
        await book.submit(Order(name, "slm"))
    assert [(await book.next_queued()).order.run_id for _ in range(3)] == ["b", "a", "c"]
    assert [run.order.run_id for run in book.listed()] == ["c", "a", "b"]


async def test_watching_ends_with_the_run(tmp_path: Path) -> None:
    book = RunBook(tmp_path, max_queued=2)
    await book.submit(ORDER)
    watching = book.watch("run-1")
    states = [(await anext(watching)).state]
    running = await book.next_queued()
    states.append((await anext(watching)).state)
    await book.update(ended(running, 0, b""))
    states += [run.state async for run in watching]
    assert states == ["queued", "running", "done"]


async def test_an_unknown_run_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="'absent'"):
        RunBook(tmp_path, max_queued=2).get("absent")


def test_an_unreadable_run_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(FailedPrecondition, match=r"bad\.json"):
        RunBook(tmp_path, max_queued=2)


def test_lines_that_are_no_progress_change_nothing() -> None:
    run = Run(ORDER, created_s=0.0)
    assert progressed(run, b"noise") == progressed(run, b'{"fact": "x"}') == run


def test_the_last_line_of_a_failure_is_its_reason() -> None:
    run = Run(ORDER, created_s=0.0)
    failed = ended(run, 1, b"Traceback\nThe adapter is not trained yet.\n")
    assert (failed.state, failed.error) == ("failed", "The adapter is not trained yet.")
    assert "exit code -9" in ended(run, -9, b"").error


def test_the_command_carries_what_the_order_changes(tmp_path: Path) -> None:
    words = command(ORDER, tmp_path, threads=1)
    assert words[-4:] == ["--steps", "20", "--seed", "3"]
    assert str(tmp_path / "steps-20-seed-3") in words
    assert "--steps" not in command(Order("a", "slm"), tmp_path, threads=0)


def test_a_bad_setting_is_named() -> None:
    with pytest.raises(SettingsError, match="UNDERSTUDY_DISTILLER_MAX_QUEUED is 0"):
        DistillerSettings.from_env({"UNDERSTUDY_DISTILLER_MAX_QUEUED": "0"})
