"""The state file, and what a process is known by."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from understudy.local.processes import child_environment, is_running, last_lines, start_time
from understudy.local.state import FILE_NAME, Phase, PlatformState, ServiceState


def test_a_state_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    service = ServiceState("router", Phase.READY, pid=7, started="5", port=9, http_port=8)
    state = PlatformState(3, "4", Phase.READY, traces="/t", services=[service])
    state.save(tmp_path)
    assert PlatformState.load(tmp_path) == state
    assert state.service("router") is service
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 99}', '{"version": 1}', "\0"])
def test_a_state_of_another_kind_is_no_state(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    assert PlatformState.load(tmp_path) is None


def test_no_file_is_no_state(tmp_path: Path) -> None:
    assert PlatformState.load(tmp_path) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_process_is_known_by_pid_and_start_time() -> None:
    mine = start_time(os.getpid())
    assert is_running(os.getpid(), mine)
    assert not is_running(os.getpid(), "1")
    assert not is_running(os.getpid(), "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_process_that_ended_but_was_not_reaped_does_not_run() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", ""], stdout=subprocess.PIPE) as process:
        started = start_time(process.pid)
        assert process.stdout.read() == b""
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_running(process.pid, started)


def test_children_inherit_everything_but_our_own_variables() -> None:
    environ = child_environment({"PATH": "/bin", "UNDERSTUDY_LOCAL_HTTP_PORT": "1"})
    assert environ["PATH"] == "/bin"
    assert environ["OMP_NUM_THREADS"] == "1"
    assert "UNDERSTUDY_LOCAL_HTTP_PORT" not in environ


def test_last_words_are_the_messages_of_structured_lines(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text('first\n\n{"level": "error", "message": "second"}\n{"a": 1}\n[1]\n')
    assert last_lines(log, 3) == ["second", '{"a": 1}', "[1]"]
    assert last_lines(tmp_path / "none.log", 3) == []
