"""Starts launcher processes and follows them; a signal can never reach a later process."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from deploy.cluster.agent.launcher import CANNOT_START
from deploy.cluster.layout import ROOT

_FLAGS: Final = ("-S", "-E", "-s", "-m", "deploy.cluster.agent.launcher")


class LaunchError(Exception):
    """A process could not be started; the message says why."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended; `code` is 128 + signal where one ended it."""

    code: int
    message: str = ""


class Launched:
    """A launcher and the process it started."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.launcher = process
        self.pid = 0
        self.is_ready = False
        self.exit: Exit | None = None
        self._handle = -1
        self._error = ""

    def take(self, line: bytes) -> None:
        """Note what the launcher reports."""
        values = json.loads(line)
        if "pid" in values:
            self.pid = values["pid"]
            with suppress(ProcessLookupError):
                self._handle = os.pidfd_open(self.pid)
        self.is_ready = self.is_ready or bool(values.get("ready"))
        self._error = values.get("error", self._error)
        if "exit_code" in values:
            self.exit = Exit(values["exit_code"], self._error)

    def finish(self) -> Exit:
        """Note that the launcher is gone and return how its process ended."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        if self.exit is None:
            self.exit = Exit(CANNOT_START, self._error or "its launcher was killed")
        return self.exit

    def send(self, number: signal.Signals) -> None:
        """Signal the process unless it has ended."""
        if self._handle >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        """End the process, or the launcher where there is no process."""
        if self._handle >= 0:
            self.send(signal.SIGKILL)
        elif self.launcher.returncode is None:
            self.launcher.kill()


class Launcher:
    """Starts one launcher process and reads its reports to the end."""

    def __init__(self, kind: str, order: Mapping[str, object], output: IO[bytes]) -> None:
        self._kind, self._order, self._output = kind, order, output
        self._reports: asyncio.StreamReader | None = None
        self._launched: Launched | None = None

    async def start(self) -> Launched:
        """Start it; return once the process runs, or raise."""
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *_FLAGS,
                self._kind,
                str(os.getpid()),
                str(writing),
                stdin=asyncio.subprocess.PIPE,
                stdout=self._output,
                stderr=self._output,
                pass_fds=(writing,),
                cwd=ROOT,
                start_new_session=True,
            )
        finally:
            os.close(writing)
        self._reports = await _reader(reading)
        launched = self._launched = Launched(process)
        assert process.stdin is not None
        with suppress(ConnectionError):
            process.stdin.write(json.dumps(self._order).encode())
            await process.stdin.drain()
        process.stdin.close()
        while not launched.pid and not launched.is_ready:
            line = await self._reports.readline()
            if not line:
                await process.wait()
                raise LaunchError(launched.finish().message)
            launched.take(line)
        return launched

    async def wait(self) -> Exit:
        """Wait for the end of what was started."""
        assert self._reports is not None
        assert self._launched is not None
        while line := await self._reports.readline():
            self._launched.take(line)
        await self._launched.launcher.wait()
        return self._launched.finish()


async def _reader(file: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(file, "rb", buffering=0)
    )
    return reader


async def run_to_end(
    kind: str, order: Mapping[str, object], output: Path, timeout_s: float | None
) -> Exit:
    """Run a process to its end; one that takes longer than the timeout is killed."""
    with output.open("ab") as log:
        launcher = Launcher(kind, order, log)
        launched = await launcher.start()
    try:
        return await asyncio.wait_for(launcher.wait(), timeout_s)
    except TimeoutError:
        return Exit(CANNOT_START, f"no end after {timeout_s} s")
    finally:
        launched.kill()
