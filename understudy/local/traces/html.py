"""Draws a trace as one self-contained HTML page: no script, no asset, nothing is fetched.

Everything that came from a span is escaped; the page's own policy forbids scripts besides.
"""

from datetime import UTC, datetime
from html import escape
from importlib import resources
from string import Template
from typing import Final

from understudy.local.traces.facts import facts, milliseconds
from understudy.local.traces.spans import Row, Span, Trace

NUM_COLOURS: Final = 8
"""Colours that the page defines for services."""
MAX_INDENT: Final = 12
"""Levels that are indented; deeper spans stand at the last one."""


def render_html(trace: Trace) -> str:
    """The page of a trace."""
    page = resources.files("understudy.local.traces").joinpath("page.html").read_text("utf-8")
    colours = {service: number % NUM_COLOURS for number, service in enumerate(trace.services)}
    started = datetime.fromtimestamp(trace.start_ns / 1e9, UTC)
    return Template(page).substitute(
        title=escape(f"{trace.root.name} {trace.trace_id}"),
        name=escape(trace.root.name),
        trace_id=escape(trace.trace_id),
        started=started.isoformat(sep=" ", timespec="milliseconds").replace("+00:00", " UTC"),
        duration=milliseconds(trace.duration_ms),
        num_spans=str(len(trace.spans)),
        legend="".join(
            f'<li><span class="key c{colour}" aria-hidden="true"></span>{escape(service)}</li>'
            for service, colour in colours.items()
        ),
        rows="\n".join(_row(row, trace, colours[row.span.service]) for row in trace.rows),
    )


def _row(row: Row, trace: Trace, colour: int) -> str:
    span = row.span
    start = milliseconds((span.start_ns - trace.start_ns) / 1e6)
    state = ' <strong class="failed">failed</strong>' if span.is_error else ""
    bar = f"left:{row.offset * 100:.3f}%;width:{row.width * 100:.3f}%"
    kind = "bar failed" if span.is_error else f"bar c{colour}"
    return (
        f'<tr><th scope="row" style="--depth:{min(row.depth, MAX_INDENT)}">'
        f"<details><summary>{escape(span.name)}{state}</summary>{_attributes(span)}</details></th>"
        f"<td>{escape(span.service)}</td>"
        f'<td class="number">{start}</td>'
        f'<td class="number">{milliseconds(span.duration_ms)}</td>'
        f'<td class="lane"><span class="{kind}" style="{bar}" aria-hidden="true"></span>'
        f'<span class="facts">{escape(facts(span))}</span></td></tr>'
    )


def _attributes(span: Span) -> str:
    entries: list[tuple[str, str]] = [("span id", span.span_id)]
    if span.parent_id:
        entries.append(("parent id", span.parent_id))
    if span.status_message:
        entries.append(("status", span.status_message))
    entries += [(key, _text(value)) for key, value in sorted(span.attributes.items())]
    entries += [
        (f"event at {milliseconds((event.time_ns - span.start_ns) / 1e6)}", event.name)
        for event in span.events
    ]
    return (
        "<dl>"
        + "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in entries)
        + "</dl>"
    )


def _text(value: object) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, tuple) else str(value)
