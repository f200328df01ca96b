"""How results look in a terminal."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from understudy.cli.figures import Evaluation, Interval
from understudy.cli.traffic import Outcome
from understudy.client import Answer, Decision

UTTERANCE_CHARS: Final = 52
REASON_CHARS: Final = 16
"""The longest reason; a failure is spelled out below the table."""
SHOWN_FAILURES: Final = 3
_POOL_STYLES: Final = {"slm": "green", "llm": "cyan"}
_SHARES: Final = ("exact_match", "tool_accuracy", "slot_f1", "schema_valid", "answered_by_slm")


def outcomes_table(outcomes: Sequence[Outcome], llm_only: Sequence[Outcome]) -> Table:
    """Return one line per row: who answered, how sure, at what cost, and whether it was right."""
    table = _table("Who answered")
    table.add_column("#", justify="right", style="dim", no_wrap=True)
    # The only column that gives way in a narrow terminal: what it hides is not a figure.
    table.add_column("utterance", max_width=UTTERANCE_CHARS)
    table.add_column("answered\nby", no_wrap=True)
    table.add_column("reason", no_wrap=True, max_width=REASON_CHARS)
    for name in ("confidence", "cost", "of\nLLM"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("right", "LLM\nalone"):
        table.add_column(name, justify="center", no_wrap=True)
    for number, (outcome, alone) in enumerate(zip(outcomes, llm_only, strict=True), 1):
        cells = _decision_cells(outcome.decision, outcome.failure)
        marks = (_mark(outcome.is_right), _mark(alone.is_right))
        utterance = Text(outcome.row.text, no_wrap=True, overflow="ellipsis")
        table.add_row(str(number), utterance, *cells, *marks)
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))


def chats_table(chats: Sequence[tuple[str, Answer]]) -> Table:
    """Return one line per conversation: no calibrator knows free text, so the LLM answers."""
    table = _table("Chat")
    table.add_column("prompt", max_width=36)
    table.add_column("answer", max_width=64)
    for name in ("answered\nby", "reason"):
        table.add_column(name, no_wrap=True)
    table.add_column("cost", justify="right", no_wrap=True)
    for prompt, answer in chats:
        pool, reason, _, cost, _ = _decision_cells(answer.decision, "")
        table.add_row(escape(prompt), escape(answer.text.strip()), pool, reason, cost)
    return table


def evaluation_table(arms: Sequence[tuple[str, Evaluation]]) -> Table:
    """Return one column per arm, one line per figure."""
    table = Table(box=None, pad_edge=False)
    table.add_column("figure")
    for name, _ in arms:
        table.add_column(name, justify="right")
    for field in fields(Evaluation):
        values = [getattr(evaluation, field.name) for _, evaluation in arms]
        table.add_row(field.name, *(_figure(field.name, value) for value in values))
    return table


def interval_line(interval: Interval) -> str:
    """Return the paired difference of exact match as a sentence."""
    return (
        f"Exact match against the LLM alone: {100 * interval.difference:+.2f} points, paired 95 %"
        f" interval {100 * interval.low:+.2f} to {100 * interval.high:+.2f}."
    )


def decision_line(decision: Decision) -> str:
    """Return a decision as one line of markup."""
    pool, reason, confidence, cost, ratio = _decision_cells(decision, "")
    trace = f" · trace {decision.trace_id}" if decision.trace_id else ""
    return (
        f"[dim]answered by[/] {pool} [dim]· {reason} · confidence {confidence} · cost {cost} "
        f"({ratio} of the LLM alone){trace}[/]"
    )


def print_failures(
    console: Console, outcomes: Sequence[Outcome], others: Sequence[str] = ()
) -> None:
    """Print why rows and other requests failed, at most a few of them."""
    failures = [outcome.failure for outcome in outcomes if outcome.decision is None]
    failures += others
    for sentence in failures[:SHOWN_FAILURES]:
        console.print(f"[red]failed:[/] {escape(sentence)}", highlight=False, soft_wrap=True)
    if len(failures) > SHOWN_FAILURES:
        console.print(f"[red]and {len(failures) - SHOWN_FAILURES} more failed.[/]")


def _decision_cells(decision: Decision | None, failure: str) -> tuple[str, str, str, str, str]:
    if decision is None:
        return "[red]failed[/]", escape(failure), "–", "–", "–"
    style = _POOL_STYLES.get(decision.pool, "white")
    sure = "–" if decision.confidence is None else f"{decision.confidence:.2f}"
    reason = str(decision.reason).replace("_", " ")
    ratio = f"{100 * decision.cost_ratio:.0f} %"
    return f"[{style}]{decision.pool}[/]", reason, sure, f"{decision.cost:.1f}", ratio


def _mark(is_right: bool) -> str:
    return "[green]✓[/]" if is_right else "[red]✗[/]"


def _figure(name: str, value: float) -> str:
    if name in _SHARES or name == "cost_ratio_to_llm_only":
        return f"{100 * value:.2f} %"
    return f"{value:d}" if isinstance(value, int) else f"{value:.3f}"
