"""Runs one stage after the other, each in a process of its own.

A training that dies takes nothing with it, and the service answers while cores are busy. Progress
comes back as the JSON lines of the recipe.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from services.distiller.runs import Order, Run, RunBook

log = logging.getLogger(__name__)

_STOP_GRACE_S: Final = 10.0
_MAX_LINE_BYTES: Final = 1 << 16


class Executor:
    """Takes queued runs from the book, oldest first, one at a time."""

    def __init__(self, book: RunBook, directory: Path, threads: int) -> None:
        self._book, self._directory, self._threads = book, directory, threads

    async def run_forever(self) -> None:
        """Work until cancelled; the run in progress then stops and stays resumable."""
        while True:
            run = await self._book.next_queued()
            log.info("A run starts.", extra={"run_id": run.order.run_id})
            ended = await self._execute(run)
            await self._book.update(ended)
            log.info("A run ended.", extra={"run_id": run.order.run_id, "state": ended.state})

    async def _execute(self, run: Run) -> Run:
        process = await asyncio.create_subprocess_exec(
            *command(run.order, self._directory, self._threads),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_MAX_LINE_BYTES,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        errors = asyncio.create_task(_tail(process.stderr))
        try:
            while line := await _line(process.stdout):
                run = await self._book.update(progressed(run, line))
            code = await process.wait()
        finally:
            await _stop(process)
        return ended(run, code, await errors)


def command(order: Order, directory: Path, threads: int) -> list[str]:
    """Return the command line of a run."""
    folder = str(directory / order.folder)
    words = [sys.executable, "-m", "services.distiller.recipe", "--stage", order.stage]
    words += ["--out", folder, "--threads", str(threads)]
    if order.num_steps is not None:
        words += ["--steps", str(order.num_steps)]
    if order.seed is not None:
        words += ["--seed", str(order.seed)]
    return words


def progressed(run: Run, line: bytes) -> Run:
    """Return the run after one line of progress; other lines change nothing."""
    try:
        told = json.loads(line)
        return replace(run, step=told["done"], num_steps=told["total"], loss=told["loss"])
    except (ValueError, KeyError, TypeError):
        return run


def ended(run: Run, code: int, errors: bytes) -> Run:
    """Return the run after its process ended; the last line of a failure is its reason."""
    if code == 0:
        return replace(run, state="done")
    lines = errors.decode("utf-8", errors="replace").strip().splitlines()
    reason = lines[-1][:500] if lines else f"The run ended with exit code {code}."
    return replace(run, state="failed", error=reason)


async def _line(stream: asyncio.StreamReader) -> bytes:
    """Return the next line, empty at the end; what is too long to be progress is read past."""
    while True:
        try:
            return await stream.readuntil()
        except asyncio.IncompleteReadError as error:
            return error.partial
        except asyncio.LimitOverrunError as error:
            await stream.readexactly(error.consumed)


async def _tail(stream: asyncio.StreamReader) -> bytes:
    """Read to the end and return the last bytes."""
    tail = b""
    while piece := await stream.read(_MAX_LINE_BYTES):
        tail = (tail + piece)[-_MAX_LINE_BYTES:]
    return tail


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP_GRACE_S)
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
