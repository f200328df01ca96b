"""One child process: spawned into a group of its own, with a log, and never outliving us.

The kernel kills a child whose parent dies (PR_SET_PDEATHSIG); what a detached supervisor left
behind, `understudy down` finds by pid and start time (/proc). Linux only.
"""

import ctypes
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

_OURS: Final = "UNDERSTUDY_"
_PR_SET_PDEATHSIG: Final = 1
_START_TIME_FIELD: Final = 19
_ENDED_STATES: Final = ("Z", "X")
_TAIL_BYTES: Final = 16_384


class Child:
    """A running (or ended) child process and its log file."""

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603  # our own command table
                argv,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509  # no threads here
            )
        self.started = start_time(self.pid)

    @property
    def pid(self) -> int:
        """Process id, which is also its group's."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """Ask it to drain and exit."""
        if self.exit_code() is None:
            self._process.terminate()

    def kill(self) -> None:
        """End it and everything it started, and reap it."""
        kill_group(self.pid)
        self._process.wait()


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what children inherit: everything but our own variables, which are set per service.

    One thread per process: the platform has more processes than a laptop has cores.
    """
    inherited = {name: environ[name] for name in environ if not name.startswith(_OURS)}
    return {**inherited, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def die_with_parent(signal_number: int) -> Callable[[], None]:
    """Return what a child runs before exec so that it dies with us."""
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, signal_number)
        if os.getppid() != parent:
            os._exit(1)

    return bind


def start_time(pid: int) -> str:
    """Return when a process started, in clock ticks; empty when it ended or cannot be known.

    With the pid it names a process for good: pids are used again, start times are not.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in _ENDED_STATES else fields[_START_TIME_FIELD]


def is_running(pid: int, started: str) -> bool:
    """Say whether the process of this pid and start time is still there."""
    return bool(started) and start_time(pid) == started


def kill_group(pid: int) -> None:
    """Kill a process group; one that is gone is fine."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def last_lines(log: Path, count: int) -> list[str]:
    """Return the last lines of a log; of structured lines the message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [_message(line) for line in lines if line.strip()][-count:]


def _message(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    message = entry.get("message") if isinstance(entry, dict) else None
    return message if isinstance(message, str) else line
