"""Rows in, figures out: one arm, or beside it the LLM alone over the same rows."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from understudy.cli.figures import Evaluation, Interval, evaluate, paired_interval
from understudy.cli.traffic import Outcome, Target, send_rows
from understudy.workloads import Workload
from understudy.workloads.snips.dataset import Row

LLM: Final = "llm"


@dataclass(frozen=True, slots=True)
class Comparison:
    """An arm, and where it was asked for the LLM alone and the difference between them."""

    arm: Evaluation
    llm_only: Evaluation | None
    interval: Interval | None
    outcomes: tuple[Outcome, ...]


def run_arm(
    console: Console,
    target: Target,
    workload: Workload,
    rows: Sequence[Row],
    model: str,
) -> list[Outcome]:
    """Send all rows to one model with a progress bar, or with one line where no one looks."""
    num_failed = 0
    with arm_progress(console) as progress:
        task = progress.add_task(f"{len(rows)} rows through {model}", total=len(rows), failed="")

        def count(outcome: Outcome) -> None:
            nonlocal num_failed
            num_failed += outcome.decision is None
            failed = f"[red]{num_failed} failed[/]" if num_failed else ""
            progress.update(task, advance=1, failed=failed)

        outcomes = asyncio.run(send_rows(target, workload, rows, model, count))
    if not console.is_terminal:
        console.print(f"{len(rows)} rows through {model}: {num_failed} failed", highlight=False)
    return outcomes


def compare(
    console: Console,
    target: Target,
    workload: Workload,
    rows: Sequence[Row],
    pool: str,
    *,
    is_paired: bool,
) -> Comparison:
    """Evaluate one pool, and pair it with the LLM alone where that is asked for."""
    outcomes = run_arm(console, target, workload, rows, pool)
    if not is_paired:
        return Comparison(evaluate(outcomes), None, None, tuple(outcomes))
    alone = run_arm(console, target, workload, rows, LLM)
    interval = paired_interval([o.is_right for o in outcomes], [o.is_right for o in alone])
    return Comparison(
        arm=evaluate(outcomes, alone),
        llm_only=evaluate(alone, alone),
        interval=interval,
        outcomes=(*outcomes, *alone),
    )


def arm_progress(console: Console) -> Progress:
    """Return a progress bar with counts, time taken and time left."""
    return Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]}"),
        console=console,
        disable=not console.is_terminal,
    )
