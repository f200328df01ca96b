"""Runs as processes: whatever they print, the service keeps its memory and goes on."""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from services.distiller import executor
from services.distiller.executor import Executor
from services.distiller.runs import Order, Run, RunBook

MEBIBYTE = 1 << 20


async def outcome(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `script` as if it were the recipe, and return the run once it ended."""
    monkeypatch.setattr(executor, "command", lambda *_: [sys.executable, "-c", script])
    book = RunBook(tmp_path / "runs", max_queued=4)
    await book.submit(Order("one", "slm", None, None))
    working = asyncio.create_task(Executor(book, tmp_path, threads=1).run_forever())
    ended = [run async for run in book.watch("one")][-1]
    working.cancel()
    with suppress(asyncio.CancelledError):
        await working
    return ended


async def test_a_line_too_long_to_be_progress_is_read_past(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        f"print('x' * {MEBIBYTE}, flush=True)\n"
        'print(\'{"done": 3, "total": 7, "loss": 0.5}\', flush=True)'
    )
    ended = await outcome(script, tmp_path, monkeypatch)
    assert (ended.state, ended.step, ended.num_steps, ended.loss) == ("done", 3, 7, 0.5)


async def test_of_endless_errors_the_last_line_is_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import sys\n"
        f"for _ in range(4): sys.stderr.write('x' * {MEBIBYTE} + '\\n')\n"
        "sys.exit('The disk is full.')"
    )
    ended = await outcome(script, tmp_path, monkeypatch)
    assert (ended.state, ended.error) == ("failed", "The disk is full.")
