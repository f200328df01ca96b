"""The caller's side of a platform: start a supervisor, follow its state, stop it."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import understudy
from understudy.errors import FailedPrecondition, Unavailable
from understudy.local.ports import LOOPBACK
from understudy.local.processes import die_with_parent, is_running, last_lines, start_time
from understudy.local.settings import LocalSettings
from understudy.local.state import FILE_NAME, Phase, PlatformState
from understudy.local.supervisor import kill_leftovers

OnChange = Callable[[PlatformState], None]

SUPERVISOR: Final = (sys.executable, "-m", "understudy.local")
_POLL_S: Final = 0.1
_SHOWN_LINES: Final = 5
_STOP_TIMEOUT_S: Final = 120.0
LOG_NAME: Final = "supervisor.log"
_LOCK_NAME: Final = "start.lock"


class Platform:
    """A platform that runs, found by its run directory; as a context manager it is stopped."""

    def __init__(
        self,
        run_dir: Path,
        state: PlatformState,
        supervisor: "subprocess.Popen[bytes] | None" = None,
    ) -> None:
        self.run_dir = run_dir
        self.state = state
        self._supervisor = supervisor

    @property
    def grpc_address(self) -> str:
        """Where the router's gRPC API listens."""
        return f"{LOOPBACK}:{self.state.service('router').port}"

    @property
    def http_url(self) -> str:
        """Where the OpenAI-compatible edge listens."""
        return f"http://{LOOPBACK}:{self.state.service('router').http_port}"

    @property
    def traces(self) -> Path:
        """The trace store's file."""
        return Path(self.state.traces)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self, on_change: OnChange = lambda _: None) -> None:
        """Stop it; stopping twice is fine."""
        stop_platform(self.run_dir, on_change)
        if self._supervisor is not None:
            self._supervisor.wait()


def find_platform(run_dir: Path) -> Platform | None:
    """Return the platform that runs from a directory; None where none does."""
    state = PlatformState.load(run_dir)
    if state is None or not is_running(state.pid, state.started):
        return None
    return Platform(run_dir, state)


def require_platform(run_dir: Path) -> Platform:
    """Return the platform that runs and is ready. Raises Unavailable with the remedy."""
    platform = find_platform(run_dir)
    if platform is None or platform.state.phase is not Phase.READY:
        raise Unavailable(f"No platform is ready under {run_dir}; start one with `understudy up`.")
    return platform


def start_platform(
    settings: LocalSettings,
    on_change: OnChange,
    *,
    is_bound: bool,
    command: Sequence[str] = SUPERVISOR,
) -> Platform:
    """Start a platform and wait until every service is ready; `on_change` sees each new state.

    A bound platform ends with this process, however that ends. Raises FailedPrecondition with the
    reason when it does not come up; nothing is left running then.
    """
    run_dir = settings.run_dir.resolve()
    run_dir.mkdir(parents=True, exist_ok=True)
    with _only_start(run_dir):
        if find_platform(run_dir) is not None:
            raise FailedPrecondition(
                f"A platform already runs from {run_dir}: use it, or stop it with"
                " `understudy down`."
            )
        (run_dir / FILE_NAME).unlink(missing_ok=True)
        supervisor = _spawn(settings, run_dir, is_bound, command)
        try:
            return Platform(run_dir, _wait_until_ready(supervisor, run_dir, on_change), supervisor)
        except BaseException:
            pid = supervisor.pid
            state = PlatformState.load(run_dir) or PlatformState(pid, start_time(pid))
            _end(state, run_dir, lambda _: None)
            supervisor.wait()
            raise


@contextmanager
def _only_start(run_dir: Path) -> Iterator[None]:
    """Keep other starts of the directory out; the kernel lets go of the lock with the process."""
    with (run_dir / _LOCK_NAME).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(
                f"A platform is just starting from {run_dir}: wait for it, or choose another"
                " directory."
            ) from None
        yield


def stop_platform(run_dir: Path, on_change: OnChange = lambda _: None) -> bool:
    """Stop the platform of a directory and whatever it left; False when there was none.

    Ctrl-C while it stops makes it stop at once.
    """
    run_dir = run_dir.resolve()
    state = PlatformState.load(run_dir)
    if state is None:
        return False
    was_running = is_running(state.pid, state.started)
    if was_running:
        state = _end(state, run_dir, on_change)
    left = kill_leftovers(state, is_running)
    (run_dir / FILE_NAME).unlink(missing_ok=True)
    return was_running or bool(left)


def _end(state: PlatformState, run_dir: Path, on_change: OnChange) -> PlatformState:
    """Stop a supervisor and return its last words; one that hangs is killed with its children."""
    ends_at = time.monotonic() + _STOP_TIMEOUT_S
    _signal(state, signal.SIGTERM)
    while is_running(state.pid, state.started):
        try:
            time.sleep(_POLL_S)
            state = PlatformState.load(run_dir) or state
            on_change(state)
        except KeyboardInterrupt:
            _signal(state, signal.SIGTERM)
        if time.monotonic() > ends_at:
            _signal(state, signal.SIGKILL)
    return PlatformState.load(run_dir) or state


def _signal(state: PlatformState, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(state.pid, number)


def _spawn(
    settings: LocalSettings, run_dir: Path, is_bound: bool, command: Sequence[str]
) -> "subprocess.Popen[bytes]":
    with (run_dir / LOG_NAME).open("wb") as log:
        return subprocess.Popen(  # noqa: S603  # our own supervisor
            command,
            env={**os.environ, **settings.to_env(), "PYTHONPATH": _import_path()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGTERM) if is_bound else None,  # noqa: PLW1509
        )


def _import_path() -> str:
    """Return where the children find `understudy` and `services`, whatever directory we are in."""
    root = str(Path(understudy.__file__).resolve().parents[1])
    return os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))


def _wait_until_ready(
    supervisor: "subprocess.Popen[bytes]", run_dir: Path, on_change: OnChange
) -> PlatformState:
    while True:
        exit_code = supervisor.poll()
        state = PlatformState.load(run_dir)
        if state is not None:
            on_change(state)
            if state.phase is Phase.READY:
                return state
        if exit_code is not None:
            raise FailedPrecondition(_why_it_ended(state, exit_code, run_dir))
        time.sleep(_POLL_S)


def _why_it_ended(state: PlatformState | None, exit_code: int, run_dir: Path) -> str:
    if state is not None and state.failure:
        return state.failure
    lines = "".join(
        f"\n    {line}" for line in last_lines(run_dir / "supervisor.log", _SHOWN_LINES)
    )
    return f"The supervisor ended with exit code {exit_code} before the platform was ready.{lines}"
