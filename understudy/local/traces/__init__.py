"""The local trace store: receives spans over OTLP, keeps them in SQLite, draws them.

One process (`python -m understudy.local.traces`) writes; any number of readers open the same file
read-only, so `understudy trace` works while the platform runs and after it has stopped. The store
is bounded: the oldest traces make room for new ones.
"""

from understudy.local.traces.html import render_html
from understudy.local.traces.spans import Event, Span, Trace
from understudy.local.traces.store import TraceStore
from understudy.local.traces.terminal import render_terminal

__all__ = ["Event", "Span", "Trace", "TraceStore", "render_html", "render_terminal"]
