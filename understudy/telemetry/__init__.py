"""Tracing, metrics and logs of every service, and the names that they share.

Nothing is set up at import: `serve()` configures tracing and logging, a tracer asked for earlier
starts to record then. Prompt text is never an attribute, a label or a log field.
"""

from understudy.telemetry.logs import configure_logging
from understudy.telemetry.metrics import Instruments, exemplar
from understudy.telemetry.streams import SpanStream
from understudy.telemetry.tracing import configure_tracing, remote_context, tracer

__all__ = [
    "Instruments",
    "SpanStream",
    "configure_logging",
    "configure_tracing",
    "exemplar",
    "remote_context",
    "tracer",
]
