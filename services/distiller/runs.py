"""The book of runs: what was asked for, how far it is, kept on disk across restarts.

A run is queued, running, done or failed. After a restart a run that was running is queued again
and resumes from its newest checkpoint.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal

from understudy.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted

Stage = Literal["adapter", "label", "slm", "calibrate"]
State = Literal["queued", "running", "done", "failed"]

STAGES: Final[tuple[Stage, ...]] = ("adapter", "label", "slm", "calibrate")
MAX_STEPS: Final = 100_000
MAX_LISTED: Final = 1000
_RUN_ID = re.compile(r"[a-z0-9-]{1,64}")
_FULL_RETRY_S = 600.0


@dataclass(frozen=True, slots=True)
class Order:
    """What a run shall do; unset steps and seed are the recipe's."""

    run_id: str
    stage: Stage
    num_steps: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if not _RUN_ID.fullmatch(self.run_id):
            raise InvalidArgument(
                f"The run id {self.run_id[:80]!r} is not 1 to 64 of [a-z0-9-].", {"field": "run_id"}
            )
        if self.num_steps is not None and not 0 < self.num_steps <= MAX_STEPS:
            raise InvalidArgument(
                f"{self.num_steps} steps are out of range; 1 to {MAX_STEPS} are possible.",
                {"field": "steps"},
            )

    @property
    def folder(self) -> str:
        """The folder that runs with equal changes share, so that stages build on one another."""
        if self.num_steps is None and self.seed is None:
            return "recipe"
        parts = [f"steps-{self.num_steps}"] if self.num_steps is not None else []
        parts += [f"seed-{self.seed}"] if self.seed is not None else []
        return "-".join(parts)


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it stands."""

    order: Order
    created_s: float
    state: State = "queued"
    step: int = 0
    num_steps: int = 0
    loss: float | None = None
    error: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing about it will change."""
        return self.state in ("done", "failed")


class RunBook:
    """All runs, newest last; lives on one event loop."""

    def __init__(self, directory: Path, max_queued: int) -> None:
        self._directory, self._max_queued = directory, max_queued
        directory.mkdir(parents=True, exist_ok=True)
        self._runs = {run.order.run_id: run for run in _saved(directory)}
        self._changed = asyncio.Condition()

    async def submit(self, order: Order) -> Run:
        """Queue a run; the same id with the same order returns the run there is.

        Raises InvalidArgument where the id belongs to another order, ResourceExhausted where too
        many runs wait.
        """
        known = self._runs.get(order.run_id)
        if known is not None:
            if known.order != order:
                raise InvalidArgument(
                    f"The run {order.run_id} exists with another stage, steps or seed.",
                    {"field": "run_id"},
                )
            return known
        if sum(run.state == "queued" for run in self._runs.values()) >= self._max_queued:
            raise ResourceExhausted(
                f"{self._max_queued} runs are waiting already.", retry_after_s=_FULL_RETRY_S
            )
        return await self.update(Run(order, created_s=time.time()))

    async def next_queued(self) -> Run:
        """Wait for the oldest queued run and mark it running."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._queued() is not None)
        run = self._queued()
        assert run is not None
        return await self.update(replace(run, state="running", error=""))

    async def update(self, run: Run) -> Run:
        """Write down a run as it stands now and tell who watches."""
        self._runs[run.order.run_id] = run
        _save(self._directory, run)
        async with self._changed:
            self._changed.notify_all()
        return run

    def get(self, run_id: str) -> Run:
        """Return a run; raises NotFound."""
        run = self._runs.get(run_id)
        if run is None:
            raise NotFound(f"There is no run {run_id[:80]!r}.", {"field": "run_id"})
        return run

    def listed(self) -> list[Run]:
        """Return all runs, newest first."""
        runs = sorted(self._runs.values(), key=lambda run: run.created_s, reverse=True)
        return runs[:MAX_LISTED]

    async def watch(self, run_id: str) -> AsyncIterator[Run]:
        """Yield a run now and after each change, until it is over; slow readers skip states."""
        run = self.get(run_id)
        yield run
        while not run.is_over:
            seen = run
            async with self._changed:
                await self._changed.wait_for(lambda: self.get(run_id) != seen)  # noqa: B023
            run = self.get(run_id)
            yield run

    def _queued(self) -> Run | None:
        queued = [run for run in self._runs.values() if run.state == "queued"]
        return min(queued, key=lambda run: run.created_s, default=None)


def _save(directory: Path, run: Run) -> None:
    path = directory / f"{run.order.run_id}.json"
    staging = path.with_suffix(".tmp")
    staging.write_text(json.dumps(asdict(run)), encoding="utf-8")
    staging.rename(path)


def _saved(directory: Path) -> list[Run]:
    return [_load(path) for path in sorted(directory.glob("*.json"))]


def _load(path: Path) -> Run:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        run = Run(order=Order(**raw.pop("order")), **raw)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FailedPrecondition(f"The run {path} cannot be read: {error!r}") from error
    return replace(run, state="queued") if run.state == "running" else run
