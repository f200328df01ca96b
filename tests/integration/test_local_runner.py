"""The local runner's mechanics over real processes: order, failures, signals, no orphans."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from understudy.errors import FailedPrecondition, Unavailable
from understudy.local.platform import (
    Platform,
    find_platform,
    require_platform,
    start_platform,
    stop_platform,
)
from understudy.local.settings import LocalSettings
from understudy.local.state import Phase, PlatformState

STUB = Path(__file__).with_name("local_stub.py")

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads /proc to find orphans"
)


def living(run_dir: Path) -> set[int]:
    """Processes that mention the run directory on their command line."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            arguments = (entry / "cmdline").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue
        if entry.name.isdigit() and str(run_dir).encode() in arguments and state not in "ZX":
            found.add(int(entry.name))
    return found - {os.getpid()}


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    ends_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_at, "the condition did not come true"
        time.sleep(0.02)


def command(run_dir: Path, *table: tuple[str, list[str], str]) -> list[str]:
    entries = [{"name": name, "needs": needs, "behaviour": how} for name, needs, how in table]
    timeout_s = "1" if all(how == "hang" for _, _, how in table) else "60"
    return [sys.executable, str(STUB), str(run_dir), timeout_s, json.dumps(entries)]


def start(run_dir: Path, *table: tuple[str, list[str], str], **changes) -> Platform:
    settings = LocalSettings(run_dir=run_dir)
    states = changes.pop("states", [])
    return start_platform(
        settings, states.append, is_bound=True, command=command(run_dir, *table), **changes
    )


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    stop_platform(tmp_path)
    wait_until(lambda: not living(tmp_path))


THREE = (("store", [], "ready"), ("worker", ["store"], "ready"), ("router", ["worker"], "ready"))


def test_services_start_by_need_and_stop_in_reverse(run_dir: Path) -> None:
    states: list[PlatformState] = []
    with start(run_dir, *THREE, states=states) as platform:
        assert [service.port for service in platform.state.services] == [4000, 4001, 4002]
        assert find_platform(run_dir) is not None
        assert require_platform(run_dir).grpc_address == "127.0.0.1:4002"
    assert states[-1].phase is Phase.READY
    assert (run_dir / "stopped.txt").read_text().split() == ["router", "worker", "store"]
    assert find_platform(run_dir) is None
    with pytest.raises(Unavailable, match="understudy up"):
        require_platform(run_dir)


def test_a_service_that_fails_to_start_is_named_with_its_last_words(run_dir: Path) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        start(run_dir, ("store", [], "ready"), ("worker", ["store"], "crash"))
    assert "The service worker ended with exit code 1" in caught.value.message
    assert "The frobnicator is missing." in caught.value.message
    assert str(run_dir / "logs" / "worker.log") in caught.value.message
    assert not living(run_dir)


def test_a_service_that_is_never_ready_is_given_up(run_dir: Path) -> None:
    with pytest.raises(FailedPrecondition, match="was not ready within 1 s"):
        start(run_dir, ("worker", [], "hang"))
    assert not living(run_dir)


def test_a_service_that_dies_later_is_started_again_on_its_port(run_dir: Path) -> None:
    with start(run_dir, *THREE) as platform:
        first = platform.state.service("worker")
        os.kill(first.pid, signal.SIGKILL)

        def again() -> bool:
            found = find_platform(run_dir)
            return found is not None and found.state.service("worker").restarts == 1

        wait_until(again)
        wait_until(lambda: PlatformState.load(run_dir).service("worker").phase is Phase.READY)
        second = PlatformState.load(run_dir).service("worker")
        assert second.pid != first.pid
        assert second.port == first.port


def test_a_service_that_keeps_dying_ends_the_platform(run_dir: Path) -> None:
    platform = start(run_dir, *THREE)
    killed: set[int] = set()

    def is_over() -> bool:
        state = PlatformState.load(run_dir)
        worker = state.service("worker")
        if worker.phase is Phase.READY and worker.pid not in killed:
            killed.add(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)
        return state.phase is Phase.FAILED

    wait_until(is_over)
    assert "worker died 4 times" in PlatformState.load(run_dir).failure
    wait_until(lambda: not living(run_dir))
    platform.stop()


def test_a_service_deaf_to_sigterm_is_killed(run_dir: Path) -> None:
    with start(run_dir, ("worker", [], "stubborn"), ("router", ["worker"], "ready")):
        pass
    assert not living(run_dir)


def test_killing_the_supervisor_leaves_no_orphan(run_dir: Path) -> None:
    platform = start(run_dir, *THREE)
    os.kill(platform.state.pid, signal.SIGKILL)
    wait_until(lambda: not living(run_dir))
    assert find_platform(run_dir) is None
    platform.stop()


def test_a_second_platform_in_one_directory_is_refused(run_dir: Path) -> None:
    with start(run_dir, *THREE), pytest.raises(FailedPrecondition, match="already runs"):
        start(run_dir, *THREE)


def test_a_second_start_while_one_is_starting_leaves_it_alone(run_dir: Path) -> None:
    refusals: list[str] = []

    def start_another(_: PlatformState) -> None:
        if not refusals:
            with pytest.raises(FailedPrecondition) as refused:
                start(run_dir, *THREE)
            refusals.append(refused.value.message)

    settings = LocalSettings(run_dir=run_dir)
    with start_platform(settings, start_another, is_bound=True, command=command(run_dir, *THREE)):
        assert "just starting" in refusals[0]
        assert find_platform(run_dir) is not None


def test_stopping_what_does_not_run_says_so(tmp_path: Path) -> None:
    assert stop_platform(tmp_path) is False


def test_a_supervisor_without_a_word_is_reported_with_its_log(tmp_path: Path) -> None:
    broken = [sys.executable, "-c", "raise SystemExit('no such module')"]
    with pytest.raises(FailedPrecondition, match="exit code 1") as caught:
        start_platform(
            LocalSettings(run_dir=tmp_path), lambda _: None, is_bound=True, command=broken
        )
    assert "no such module" in caught.value.message


CALLER = """
import sys
from pathlib import Path
from understudy.local.platform import start_platform
from understudy.local.settings import LocalSettings
settings = LocalSettings(run_dir=Path(sys.argv[1]))
with start_platform(settings, lambda _: None, is_bound=True, command=sys.argv[2:]):
    print("up", flush=True)
    sys.stdin.read()
"""


def caller(run_dir: Path, *table: tuple[str, list[str], str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", CALLER, str(run_dir), *command(run_dir, *table)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )


def hear_ctrl_c() -> None:
    """Undo what a shell does to background jobs: they are started deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_when_the_caller_goes_everything_goes(run_dir: Path, number: signal.Signals) -> None:
    with caller(run_dir, *THREE) as process:
        assert process.stdout.readline() == b"up\n"
        assert len(living(run_dir)) == 5
        os.killpg(process.pid, number)
        process.wait(30)
        wait_until(lambda: not living(run_dir))


def test_ctrl_c_while_starting_ends_every_child(run_dir: Path) -> None:
    with caller(run_dir, ("store", [], "ready"), ("worker", [], "hang")) as process:
        wait_until(lambda: (run_dir / "ready" / "store.json").exists())
        os.killpg(process.pid, signal.SIGINT)
        process.wait(30)
        assert process.returncode != 0
        wait_until(lambda: not living(run_dir))
