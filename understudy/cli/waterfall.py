"""One request's trace from the local store: found, drawn, written as a page."""

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from understudy.errors import NotFound
from understudy.local.traces import Trace, TraceStore, render_html, render_terminal

COMPLETE: Final = frozenset({"router", "attention", "experts", "kvstore"})
_POLL_S: Final = 0.25


def service_families(trace: Trace) -> list[str]:
    """Return the services of a trace; `attention-llm` and `attention-slm` are both attention."""
    return sorted({service.split("-", 1)[0] for service in trace.services})


def find_trace(path: Path, trace_id: str | None, *, is_escalated: bool) -> Trace:
    """Return a trace by id, else the latest (escalated) one. Raises NotFound with the remedy."""
    if not path.exists():
        raise NotFound(f"There is no trace store at {path}; `understudy up` makes one.")
    with TraceStore.open(path, read_only=True) as store:
        if trace_id:
            trace = store.get(trace_id)
        else:
            trace = store.latest_escalated() if is_escalated else store.latest()
    if trace is None:
        what = f"trace {trace_id}" if trace_id else "such a trace"
        raise NotFound(f"The store {path} has no {what} (yet: spans arrive some seconds late).")
    return trace


def await_trace(
    path: Path, trace_ids: Sequence[str], services: Collection[str], timeout_s: float
) -> Trace | None:
    """Return the first trace that names all services, else after a while the fullest one.

    Spans are exported in batches, some seconds after the answer.
    """
    ends_at = time.monotonic() + timeout_s
    with TraceStore.open(path, read_only=True) as store:
        while True:
            found = [trace for trace in map(store.get, trace_ids) if trace is not None]
            found.sort(key=lambda trace: len(set(services) & set(service_families(trace))))
            is_complete = bool(found) and set(services) <= set(service_families(found[-1]))
            if is_complete or time.monotonic() > ends_at:
                return found[-1] if found else None
            time.sleep(_POLL_S)


def show_trace(trace: Trace, console: Console, page: Path | None) -> None:
    """Draw a trace in the terminal, and write its page where one is asked for."""
    render_terminal(trace, console)
    if page is not None:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(render_html(trace), "utf-8")
        console.print(f"The same as a page: {page}", highlight=False, soft_wrap=True)
