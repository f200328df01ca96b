"""W3C trace context over metadata: read where opentelemetry-api is importable, else nothing.

The SDK needs no tracing library; a caller that uses one sees its spans continued.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Final

from understudy.rpc.metadata import find

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACEPARENT_KEY: Final = "traceparent"
_TRACE_KEYS: Final = (TRACEPARENT_KEY, "tracestate")

Pairs = tuple[tuple[str, str | bytes], ...]


@cache
def _propagator() -> "TraceContextTextMapPropagator | None":
    """The W3C propagator, or None where opentelemetry-api is not installed."""
    try:
        from opentelemetry.trace.propagation import tracecontext
    except ImportError:
        return None
    return tracecontext.TraceContextTextMapPropagator()


def inject(metadata: Sequence[tuple[str, str | bytes]] = ()) -> Pairs:
    """`metadata` plus the current trace context; a context already in it is replaced."""
    propagator = _propagator()
    carrier: dict[str, str] = {}
    if propagator is not None:
        propagator.inject(carrier)
    if not carrier:
        return tuple(metadata)
    kept = tuple(pair for pair in metadata if pair[0] not in _TRACE_KEYS)
    return (*kept, *carrier.items())


def traceparent() -> str:
    """The current span as a `traceparent` header value; empty when nothing is traced."""
    return find(inject(), TRACEPARENT_KEY) or ""


def extract(carrier: Mapping[str, str]) -> "Context | None":
    """The caller's trace context from headers or metadata (keys in lower case), where present."""
    propagator = _propagator()
    if propagator is None or TRACEPARENT_KEY not in carrier:
        return None
    return propagator.extract(dict(carrier))
