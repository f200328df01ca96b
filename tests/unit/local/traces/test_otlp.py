"""OTLP messages become bounded, plain spans."""

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from understudy.local.traces.otlp import spans_from


def request(span, service="router"):
    pairs = [KeyValue(key="service.name", value=AnyValue(string_value=service))] if service else []
    resource = Resource(attributes=pairs)
    scope = ScopeSpans(spans=[span])
    return ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=resource, scope_spans=[scope])]
    )


def otlp_span(**fields):
    defaults = {"trace_id": b"\x01" * 16, "span_id": b"\x02" * 8, "name": "work"}
    return Span(**{**defaults, **fields})


def test_every_kind_of_value_is_read():
    values = {
        "text": AnyValue(string_value="x"),
        "flag": AnyValue(bool_value=True),
        "whole": AnyValue(int_value=7),
        "real": AnyValue(double_value=0.5),
        "list": AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1)])),
        "nested": AnyValue(kvlist_value=KeyValueList()),
    }
    span = otlp_span(
        attributes=[KeyValue(key=key, value=value) for key, value in values.items()],
        parent_span_id=b"\x03" * 8,
        start_time_unix_nano=5,
        end_time_unix_nano=9,
        status=Status(code=Status.STATUS_CODE_ERROR, message="bad"),
        events=[Span.Event(time_unix_nano=6, name="tick")],
    )

    (read,) = spans_from(request(span))

    assert read.service == "router"
    assert (read.trace_id, read.span_id, read.parent_id) == ("01" * 16, "02" * 8, "03" * 8)
    assert (read.start_ns, read.end_ns) == (5, 9)
    assert read.is_error
    assert read.status_message == "bad"
    assert read.events[0].name == "tick"
    assert isinstance(read.attributes.pop("nested"), str)
    assert read.attributes == {"text": "x", "flag": True, "whole": 7, "real": 0.5, "list": (1,)}


def test_sizes_are_bounded():
    pairs = [
        KeyValue(key=f"{n}" + "k" * 999, value=AnyValue(string_value="v" * 3_000))
        for n in range(200)
    ]
    span = otlp_span(name="n" * 9999, attributes=pairs, end_time_unix_nano=2**64 - 1)

    (read,) = spans_from(request(span, service="s" * 9999))

    assert len(read.name) == len(read.service) == 256
    assert len(read.attributes) == 128
    assert all(len(str(value)) == 1024 for value in read.attributes.values())
    assert read.end_ns == 2**63 - 1


def test_span_without_proper_ids_is_left_out():
    assert list(spans_from(request(otlp_span(span_id=b"\x02")))) == []
    assert list(spans_from(request(otlp_span(trace_id=b"")))) == []


def test_span_of_a_nameless_service_is_unknown():
    (read,) = spans_from(request(otlp_span(), service=""))

    assert read.service == "unknown"
