"""Draws a trace as a waterfall in the terminal."""

from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from understudy.local.traces.facts import facts, milliseconds, printable
from understudy.local.traces.spans import Row, Trace

MAX_ROWS: Final = 250
_COLOURS: Final = ("cyan", "green", "magenta", "yellow", "blue", "bright_red", "bright_black")
_MIN_BAR, _MAX_BAR = 12, 40
_FACTS_WIDTH: Final = 100
"""Terminals narrower than this show no facts."""


def render_terminal(trace: Trace, console: Console) -> None:
    """Print the trace: one line a span, its place in time as a bar, its main facts."""
    colours = {
        service: _COLOURS[number % len(_COLOURS)] for number, service in enumerate(trace.services)
    }
    bar_width = max(_MIN_BAR, min(_MAX_BAR, console.width // 4))
    shows_facts = console.width >= _FACTS_WIDTH
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("span", no_wrap=True, overflow="ellipsis")
    table.add_column("service", no_wrap=True, overflow="ellipsis")
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, width=bar_width)
    if shows_facts:
        table.add_column("facts", no_wrap=True, overflow="ellipsis", style="dim")
    for row in trace.rows[:MAX_ROWS]:
        colour = "red" if row.span.is_error else colours[row.span.service]
        cells = [
            Text("  " * row.depth + printable(row.span.name)),
            Text(printable(row.span.service), style=colour),
            Text(milliseconds(row.span.duration_ms)),
            Text(_bar(row, bar_width), style=colour),
        ]
        table.add_row(*cells, *([Text(facts(row.span))] if shows_facts else []))
    console.print(_heading(trace))
    console.print(table)
    if len(trace.rows) > MAX_ROWS:
        console.print(Text(f"and {len(trace.rows) - MAX_ROWS} more spans", style="dim"))


def _heading(trace: Trace) -> Text:
    services = ", ".join(printable(service) for service in trace.services)
    heading = Text("trace ", style="bold")
    heading.append(trace.trace_id)
    heading.append(
        f"  {milliseconds(trace.duration_ms)}  {len(trace.spans)} spans  {services}",
        style="not bold",
    )
    return heading


def _bar(row: Row, width: int) -> str:
    """The span's interval on `width` cells, in halves of a cell, at least one half."""
    start = min(round(row.offset * width * 2), width * 2 - 1)
    end = min(max(start + 1, round((row.offset + row.width) * width * 2)), width * 2)
    cells = ""
    for cell in range(width):
        left = start <= 2 * cell < end
        right = start <= 2 * cell + 1 < end
        cells += "━" if left and right else "╸" if left else "╺" if right else " "
    return cells
