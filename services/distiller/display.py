"""Shows how a stage advances: a bar for people, JSON lines for the service that started it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Report = Callable[[int, float | None], None]
"""Hears how many units are done and the latest loss, where there is one."""


class Display(Protocol):
    """Whoever is told about progress."""

    def task(self, title: str, total: int) -> AbstractContextManager[Report]:
        """Open one task of `total` units."""
        ...

    def say(self, sentence: str) -> None:
        """Pass on one finished fact."""
        ...


class BarDisplay:
    """Bars with elapsed and remaining time on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Report]:
        """Show a bar until the task ends."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self._console) as bar:
            shown = bar.add_task(title, total=total, note="")

            def report(done: int, loss: float | None) -> None:
                note = "" if loss is None else f"loss {loss:.3f}"
                bar.update(shown, completed=done, note=note)

            yield report

    def say(self, sentence: str) -> None:
        """Print it above the bars."""
        self._console.print(sentence, highlight=False)


class LineDisplay:
    """One JSON object a line, at most one a second and task, for logs and parent processes."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Report]:
        """Write a line when a second has passed, and for the last unit."""
        written_at = -1.0

        def report(done: int, loss: float | None) -> None:
            nonlocal written_at
            if done < total and self._clock() - written_at < 1.0:
                return
            written_at = self._clock()
            self._write({"task": title, "done": done, "total": total, "loss": loss})

        yield report

    def say(self, sentence: str) -> None:
        """Write it as a line of its own."""
        self._write({"fact": sentence})

    def _write(self, line: dict[str, object]) -> None:
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()
