"""OTLP messages -> plain spans; refuses nothing but ids of the wrong length, cuts what is long."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from understudy.local.traces.spans import Event, Span, Value

MAX_NAME_CHARS: Final = 256
MAX_VALUE_CHARS: Final = 1024
MAX_ATTRIBUTES: Final = 128
MAX_ITEMS: Final = 64
MAX_EVENTS: Final = 64

_TRACE_ID_BYTES: Final = 16
_SPAN_ID_BYTES: Final = 8
_MAX_TIME_NS: Final = 2**63 - 1
"""What SQLite can store."""


def spans_from(request: ExportTraceServiceRequest) -> Iterator[Span]:
    """The well-formed spans of an export."""
    for resource_spans in request.resource_spans:
        resource = _attributes(resource_spans.resource.attributes)
        service = str(resource.get("service.name", "unknown"))[:MAX_NAME_CHARS]
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                if _is_well_formed(span):
                    yield _span(span, service)


def _is_well_formed(span: OtlpSpan) -> bool:
    return len(span.trace_id) == _TRACE_ID_BYTES and len(span.span_id) == _SPAN_ID_BYTES


def _span(span: OtlpSpan, service: str) -> Span:
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id[:_SPAN_ID_BYTES].hex(),
        service=service,
        name=span.name[:MAX_NAME_CHARS],
        start_ns=min(span.start_time_unix_nano, _MAX_TIME_NS),
        end_ns=min(span.end_time_unix_nano, _MAX_TIME_NS),
        is_error=span.status.code == Status.STATUS_CODE_ERROR,
        status_message=span.status.message[:MAX_VALUE_CHARS],
        attributes=_attributes(span.attributes),
        events=tuple(
            Event(min(event.time_unix_nano, _MAX_TIME_NS), event.name[:MAX_NAME_CHARS])
            for event in span.events[:MAX_EVENTS]
        ),
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Value]:
    return {pair.key[:MAX_NAME_CHARS]: _value(pair.value) for pair in islice(pairs, MAX_ATTRIBUTES)}


def _value(value: AnyValue) -> Value:
    if value.HasField("array_value"):
        return tuple(_scalar(item) for item in value.array_value.values[:MAX_ITEMS])
    return _scalar(value)


def _scalar(value: AnyValue) -> str | bool | int | float:
    if value.HasField("bool_value"):
        return value.bool_value
    if value.HasField("int_value"):
        return value.int_value
    if value.HasField("double_value"):
        return value.double_value
    if value.HasField("string_value"):
        return value.string_value[:MAX_VALUE_CHARS]
    return str(value).strip()[:MAX_VALUE_CHARS]
