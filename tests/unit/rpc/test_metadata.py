"""Request ids, API keys and trace context in metadata."""

import contextvars
import json
import subprocess
import sys

from opentelemetry.sdk.trace import TracerProvider

from understudy.rpc import current_request_id, extract, inject, request_metadata, traceparent
from understudy.rpc.channels import channel_options
from understudy.rpc.metadata import accept_request_id, find, set_current_request_id


def test_well_formed_request_id_is_kept():
    assert accept_request_id("job-7.a:b_c") == "job-7.a:b_c"


def test_malformed_request_ids_are_replaced():
    for bad in (None, "", "a b", "x" * 129, "line\nbreak", "é"):
        assert len(accept_request_id(bad)) == 32


def test_outgoing_metadata_passes_the_served_request_id_on():
    def served():
        set_current_request_id("req-9")
        return request_metadata(api_key="k"), current_request_id()

    pairs, current = contextvars.copy_context().run(served)

    assert pairs == (("x-request-id", "req-9"), ("authorization", "Bearer k"))
    assert current == "req-9"


def test_outgoing_metadata_outside_a_call_has_a_new_request_id():
    assert len(find(request_metadata(), "x-request-id")) == 32


def test_find_ignores_binary_values():
    assert find((("key", b"bytes"), ("key", "text")), "key") == "text"
    assert find(None, "key") is None


def test_inject_replaces_a_stale_trace_context():
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("outer") as span:
        pairs = inject((("traceparent", "stale"), ("other", "kept")))
        current = traceparent()

    assert ("other", "kept") in pairs
    assert find(pairs, "traceparent") == current
    assert f"{span.get_span_context().trace_id:032x}" in current


def test_nothing_is_injected_where_nothing_is_traced():
    assert inject((("a", "b"),)) == (("a", "b"),)
    assert traceparent() == ""


def test_extract_without_traceparent_is_none():
    assert extract({"other": "x"}) is None


def test_trace_context_is_off_without_opentelemetry():
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from understudy.rpc import extract, inject, traceparent\n"
        "assert inject((('a', 'b'),)) == (('a', 'b'),)\n"
        "assert traceparent() == '' and extract({'traceparent': 'x'}) is None\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_service_config_retries_unavailable_only():
    config = json.loads(dict(channel_options())["grpc.service_config"])

    (method,) = config["methodConfig"]
    assert method["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert config["loadBalancingConfig"] == [{"round_robin": {}}]


def test_options_replace_defaults_of_the_same_name():
    options = channel_options([("grpc.keepalive_time_ms", 5)])

    assert [value for name, value in options if name == "grpc.keepalive_time_ms"] == [5]
