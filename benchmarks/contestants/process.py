"""A contestant as the benchmark sees it: a process that is asked, one question at a time."""

import json
import os
import subprocess
from collections.abc import Sequence
from typing import Final, Self

from benchmarks.measure import ROOT

STOP_TIMEOUT_S: Final = 10.0


class ContestantProcess:
    """Starts a contestant, which then waits; as a context manager it is ended."""

    def __init__(self, command: Sequence[str], num_threads: int) -> None:
        """Raises RuntimeError with its last words where it cannot load its model."""
        environ = {**os.environ, "OMP_NUM_THREADS": str(num_threads)}
        self._command = " ".join(command)
        self._process = subprocess.Popen(  # noqa: S603 - our own table of commands
            command,
            cwd=ROOT,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = self._read()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, **question: object) -> float:
        """Return the seconds that it took."""
        assert self._process.stdin is not None, "it was opened with a pipe"
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return float(self._read()["seconds"])

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None, "it was opened with a pipe"
        self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None, "it was opened with a pipe"
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise RuntimeError(f"{self._command} ended with {code}; it said why above.")
        answer: dict[str, float] = json.loads(line)
        return answer
