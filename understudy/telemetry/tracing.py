"""Sets up OpenTelemetry tracing with OTLP export over gRPC.

Before the set-up, and for good when no endpoint is set, tracers record nothing and cost next to
nothing. Export is batched off the caller's thread; a collector that is away costs spans only.
"""

import logging
from collections.abc import Callable
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context

from understudy.rpc.traces import TRACEPARENT_KEY, extract

EXPORT_DELAY_MS: Final = 500
MAX_QUEUE_SPANS: Final = 8192
MAX_BATCH_SPANS: Final = 512
EXPORT_TIMEOUT_S: Final = 5
MAX_ATTRIBUTE_CHARS: Final = 1024


def tracer(name: str) -> trace.Tracer:
    """The tracer of a module; it records once the process has configured tracing."""
    return trace.get_tracer(name)


def remote_context(traceparent: str) -> Context:
    """A context whose current span is the remote one; an empty context where it is malformed."""
    context = extract({TRACEPARENT_KEY: traceparent}) if traceparent else None
    return Context() if context is None else context


def configure_tracing(service_name: str, endpoint: str, ratio: float) -> Callable[[], None]:
    """Export spans to an OTLP/gRPC endpoint and return what flushes and stops the export.

    `ratio` is the share of new traces that are sampled; a caller's decision is always kept. An
    empty endpoint leaves tracing off. `http://host:port` and `host:port` are plaintext.
    """
    if not endpoint:
        return _nothing
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    logging.getLogger("opentelemetry").setLevel(logging.ERROR)
    exporter = OTLPSpanExporter(
        endpoint=endpoint,
        insecure=not endpoint.startswith("https://"),
        timeout=EXPORT_TIMEOUT_S,
    )
    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(ratio),
        resource=Resource.create({"service.name": service_name}),
        span_limits=SpanLimits(max_attribute_length=MAX_ATTRIBUTE_CHARS),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(
        BatchSpanProcessor(
            exporter,
            max_queue_size=MAX_QUEUE_SPANS,
            schedule_delay_millis=EXPORT_DELAY_MS,
            max_export_batch_size=MAX_BATCH_SPANS,
        )
    )
    trace.set_tracer_provider(provider)
    return provider.shutdown


def _nothing() -> None:
    """Stop what was never started."""
