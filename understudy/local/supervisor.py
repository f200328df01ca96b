"""Starts the services, keeps them running, stops them: one loop, no threads.

Each turn starts what has all it needs, notices what became ready, died or takes too long, and
tells others through the state file. A service that dies before it was ready ends everything with a
sentence. One that dies later is started again on its old port, so that its peers find it; one that
keeps dying ends everything too. The end comes in reverse: first those that nobody needs any more.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

from understudy.errors import FailedPrecondition, UnderstudyError
from understudy.local.ports import LOOPBACK, answers_ping
from understudy.local.processes import Child, kill_group, last_lines, start_time
from understudy.local.services import Launch, Service, ready_file
from understudy.local.state import Phase, PlatformState, ServiceState

TURN_S: Final = 0.05
MAX_DEATHS: Final = 3
DEATHS_WINDOW_S: Final = 60.0
_PING_TIMEOUT_S: Final = 0.2
_SHOWN_LINES: Final = 5


@dataclass(slots=True)
class _Run:
    """One service while it is supervised."""

    service: Service
    state: ServiceState
    child: Child | None = None
    launch: Launch | None = None
    started_at: float = 0.0
    deaths: list[float] = field(default_factory=list)

    @property
    def is_alive(self) -> bool:
        return self.child is not None and self.child.exit_code() is None

    @property
    def is_done(self) -> bool:
        """Whether it was a step to be done once, and is."""
        return self.service.ready == "exit" and self.state.phase is Phase.READY


class Supervisor:
    """Runs services until it is told to stop (SIGTERM), at once if told twice; one per process."""

    def __init__(
        self,
        services: Sequence[Service],
        run_dir: Path,
        environ: Mapping[str, str],
        *,
        start_timeout_s: float,
        stop_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runs = [_Run(service, ServiceState(service.name)) for service in services]
        self._run_dir = run_dir
        self._environ = environ
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._clock = clock
        self._num_signals = 0
        states = [run.state for run in self._runs]
        self.state = PlatformState(os.getpid(), start_time(os.getpid()), services=states)

    def run(self) -> int:
        """Run until a signal or a failure; returns the exit code, and leaves no child behind."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        for name in ("ready", "logs"):
            (self._run_dir / name).mkdir(parents=True, exist_ok=True)
        try:
            while not self._num_signals:
                self._turn()
                time.sleep(TURN_S)
        except UnderstudyError as error:
            self.state.failure = error.message
        finally:
            self._stop_all()
        self.state.phase = Phase.FAILED if self.state.failure else Phase.STOPPED
        self._save()
        return 1 if self.state.failure else 0

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._num_signals += 1

    def _turn(self) -> None:
        before = [(run.state.phase, run.state.restarts) for run in self._runs]
        for run in self._runs:
            if run.state.phase is Phase.WAITING:
                self._start_if_possible(run)
            elif run.service.ready == "exit":
                self._look_whether_done(run)
            elif not run.is_alive:
                self._bury(run)
            elif run.state.phase is Phase.STARTING:
                self._look_whether_ready(run)
        after = [(run.state.phase, run.state.restarts) for run in self._runs]
        if all(run.state.phase is Phase.READY for run in self._runs):
            self.state.phase = Phase.READY
        if before != after:
            self._save()

    def _start_if_possible(self, run: _Run) -> None:
        done = {other.state.name for other in self._runs if other.is_done}
        ports = {other.state.name: other.state.port for other in self._runs if other.state.port}
        if any(name not in ports and name not in done for name in run.service.needs):
            return
        ready_file(self._run_dir, run.state.name).unlink(missing_ok=True)
        run.launch = run.service.launch(ports, run.state.port)
        run.state.log = str(self._run_dir / "logs" / f"{run.state.name}.log")
        environ = {**self._environ, **run.launch.environ}
        try:
            run.child = Child(run.launch.argv, environ, Path(run.state.log))
        except OSError as error:
            raise FailedPrecondition(
                f"The service {run.state.name} cannot be started: {error}; run `make setup`."
            ) from error
        run.state.pid, run.state.started = run.child.pid, run.child.started
        run.started_at = self._clock()
        run.state.phase = Phase.STARTING

    def _look_whether_ready(self, run: _Run) -> None:
        if self._is_ready(run):
            run.state.phase = Phase.READY
        elif self._clock() - run.started_at > self._start_timeout_s:
            raise self._failure(run, f"was not ready within {self._start_timeout_s:g} s")

    def _look_whether_done(self, run: _Run) -> None:
        assert run.child is not None, "a step that is looked at was started"
        exit_code = run.child.exit_code()
        if exit_code == 0:
            run.state.phase = Phase.READY
        elif exit_code is not None:
            raise self._failure(run, f"ended with exit code {exit_code}")

    def _is_ready(self, run: _Run) -> bool:
        assert run.launch is not None, "a starting service was launched"
        run.state.http_port = run.launch.http_port
        if run.service.ready == "ping":
            if answers_ping(LOOPBACK, run.launch.port, _PING_TIMEOUT_S):
                run.state.port = run.launch.port
                return True
            return False
        with suppress(OSError, ValueError, KeyError):
            told = json.loads(ready_file(self._run_dir, run.state.name).read_text("utf-8"))
            run.state.port, run.state.metrics_port = told["port"], told["metrics_port"] or 0
            return True
        return False

    def _bury(self, run: _Run) -> None:
        assert run.child is not None, "a service that died was started"
        exit_code = run.child.exit_code()
        run.child.kill()
        if run.state.phase is Phase.STARTING and not run.state.restarts:
            raise self._failure(run, f"ended with exit code {exit_code} before it was ready")
        now = self._clock()
        run.deaths = [death for death in run.deaths if now - death < DEATHS_WINDOW_S] + [now]
        if len(run.deaths) > MAX_DEATHS:
            raise self._failure(run, f"died {len(run.deaths)} times, last with {exit_code}")
        run.state.restarts += 1
        run.state.phase = Phase.WAITING

    def _failure(self, run: _Run, what: str) -> FailedPrecondition:
        assert run.child is not None, "a service that failed was started"
        lines = last_lines(run.child.log, _SHOWN_LINES)
        said = "".join(f"\n    {line}" for line in lines) or "\n    (nothing)"
        return FailedPrecondition(
            f"The service {run.state.name} {what}; everything was stopped. Its last words:{said}\n"
            f"The whole log is {run.child.log}; mend what it names and start again."
        )

    def _stop_all(self) -> None:
        self.state.phase = Phase.STOPPING
        for run in self._runs:
            if run.is_done:
                run.state.phase = Phase.STOPPED
        self._save()
        while alive := [run for run in self._runs if run.is_alive]:
            needed = {name for run in alive for name in run.service.needs}
            self._stop([run for run in alive if run.state.name not in needed])

    def _stop(self, runs: Sequence[_Run]) -> None:
        ends_at = self._clock() + self._stop_timeout_s
        for run in runs:
            assert run.child is not None, "only what runs is stopped"
            run.child.terminate()
            run.state.phase = Phase.STOPPING
        self._save()
        while any(run.is_alive for run in runs):
            if self._clock() > ends_at or self._num_signals > 1:
                break
            time.sleep(TURN_S)
        for run in runs:
            assert run.child is not None, "only what runs is stopped"
            run.child.kill()
            run.state.phase = Phase.STOPPED
        self._save()

    def _save(self) -> None:
        self.state.save(self._run_dir)


def kill_leftovers(state: PlatformState, is_running: Callable[[int, str], bool]) -> list[str]:
    """Kill services of a supervisor that is gone; returns their names."""
    left = [run for run in state.services if run.pid and is_running(run.pid, run.started)]
    for run in left:
        kill_group(run.pid)
    return [run.name for run in left]
