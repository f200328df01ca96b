"""A platform's start and stop as the terminal shows them: one line per service."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from understudy.local.platform import (
    Platform,
    find_platform,
    start_platform,
    stop_platform,
)
from understudy.local.settings import LocalSettings
from understudy.local.state import Phase, PlatformState, ServiceState

_STYLES: Final = {
    Phase.WAITING: "dim",
    Phase.STARTING: "yellow",
    Phase.READY: "green",
    Phase.STOPPING: "yellow",
    Phase.STOPPED: "dim",
    Phase.FAILED: "red",
}
_DONE: Final = {"starting": (Phase.READY,), "stopping": (Phase.STOPPED, Phase.WAITING)}


class ServiceProgress:
    """A spinner, a phase and the time taken for every service; plain lines where no one looks."""

    def __init__(self, console: Console, progress: Progress, what: str) -> None:
        self._console = console
        self._progress = progress
        self._done = _DONE[what]
        self._tasks: dict[str, TaskID] = {}
        self._phases: dict[str, Phase] = {}

    def show(self, state: PlatformState) -> None:
        """Show what changed since the last state."""
        for service in state.services:
            if self._phases.get(service.name) is not service.phase:
                self._phases[service.name] = service.phase
                self._update(service)

    def _update(self, service: ServiceState) -> None:
        is_done = service.phase in self._done
        if not self._console.is_terminal:
            if is_done:
                self._console.print(f"{service.name}: {service.phase}", highlight=False)
            return
        if service.name not in self._tasks:
            self._tasks[service.name] = self._progress.add_task(service.name, total=1, phase="")
        text = f"[{_STYLES[service.phase]}]{service.phase}[/]"
        task = self._tasks[service.name]
        self._progress.update(task, phase=text, completed=int(is_done))
        if not is_done:
            self._progress.reset(task, phase=text)


@contextmanager
def shown(console: Console, what: str) -> Iterator[ServiceProgress]:
    """Show services while they are `starting` or `stopping`."""
    columns = (
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description:<14}"),
        TextColumn("{task.fields[phase]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield ServiceProgress(console, progress, what)


def start(settings: LocalSettings, console: Console, *, is_bound: bool) -> Platform:
    """Start a platform and show how it comes up. Raises with the reason when it does not."""
    console.print("Starting the platform", highlight=False)
    with shown(console, "starting") as progress:
        return start_platform(settings, progress.show, is_bound=is_bound)


def stop(run_dir: Path, console: Console) -> bool:
    """Stop a platform and show how it goes down; False when there was none."""
    with shown(console, "stopping") as progress:
        return stop_platform(run_dir, progress.show)


@contextmanager
def private_platform(console: Console, name: str) -> Iterator[Platform]:
    """Run a platform of our own, on free ports and beside any other, for as long as the block."""
    settings = LocalSettings.from_env(os.environ)
    settings = replace(settings, run_dir=settings.run_dir / name, http_port=0, grpc_port=0)
    platform = start(settings, console, is_bound=True)
    try:
        yield platform
    finally:
        with shown(console, "stopping") as progress:
            platform.stop(progress.show)


@contextmanager
def some_platform(console: Console, name: str) -> Iterator[Platform]:
    """Use the platform that runs, else one of our own."""
    running = find_platform(LocalSettings.from_env(os.environ).run_dir.resolve())
    if running is not None and running.state.phase is Phase.READY:
        yield running
        return
    with private_platform(console, name) as platform:
        yield platform
