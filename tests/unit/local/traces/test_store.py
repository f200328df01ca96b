"""The trace store finds traces again, stays bounded, and refuses foreign files."""

import sqlite3
from dataclasses import replace

import pytest

from understudy.errors import FailedPrecondition
from understudy.local.traces import TraceStore
from understudy.telemetry import names


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "traces.sqlite"


@pytest.fixture
def store(path):
    with TraceStore.open(path) as opened:
        yield opened


def test_trace_comes_back_as_it_was_stored(store, escalated):
    store.add(reversed(escalated.spans))

    found = store.get(escalated.trace_id.upper())

    assert found == escalated


def test_tuple_attributes_survive(store, span):
    store.add([span(1, 0, "work", "router", 0, 1, attributes={"shards": (0, 1), "ok": True})])

    assert store.latest().root.attributes == {"shards": (0, 1), "ok": True}


def test_unknown_trace_is_none(store):
    assert store.get("00" * 16) is None
    assert store.latest() is None
    assert store.latest_escalated() is None


def test_latest_is_the_latest_request_even_when_other_work_came_later(store, escalated, span):
    store.add(escalated.spans)
    store.add([span(1, 0, "housekeeping", "kvstore", 500, 501, trace_id="cd" * 16)])

    assert store.latest().trace_id == escalated.trace_id


def test_latest_is_any_trace_where_no_request_is_stored(store, span):
    store.add([span(1, 0, "housekeeping", "kvstore", 500, 501)])

    assert store.latest().root.name == "housekeeping"


def test_latest_escalated_skips_later_accepted_requests(store, escalated, span):
    store.add(escalated.spans)
    store.add(
        [
            span(1, 0, names.ROUTER_GENERATE, "router", 200, 300, trace_id="cd" * 16),
            span(2, 1, names.ROUTER_ATTEMPT, "router", 200, 300, trace_id="cd" * 16),
        ]
    )

    assert store.latest().trace_id == "cd" * 16
    assert store.latest_escalated().trace_id == escalated.trace_id


def test_two_attempts_are_no_escalation_where_the_router_says_so(store, escalated):
    """The SLM's worker died, so that there was nothing of the SLM's to judge."""
    store.add([replace(one, attributes={names.ESCALATED: False}) for one in escalated.spans])

    assert store.latest_escalated() is None


def test_oldest_traces_make_room(path, span):
    with TraceStore.open(path, max_spans=30) as store:
        for number in range(20):
            trace_id = f"{number:032x}"
            store.add([span(n, 0, "w", "s", number, number, trace_id=trace_id) for n in (1, 2, 3)])

        assert store.count() <= 30
        assert store.get(f"{0:032x}") is None
        assert len(store.get(f"{19:032x}").spans) == 3


def test_span_sent_twice_is_stored_once(store, span):
    store.add([span(1, 0, "w", "s", 0, 1)])
    store.add([span(1, 0, "w", "s", 0, 2)])

    assert store.count() == 1
    assert store.latest().duration_ms == 2


def test_reader_sees_what_the_writer_added_meanwhile(store, path, escalated):
    with TraceStore.open(path, read_only=True) as reader:
        assert reader.latest() is None
        store.add(escalated.spans)

        assert reader.latest() == escalated


def test_reader_works_after_the_writer_has_stopped(path, escalated):
    with TraceStore.open(path) as writer:
        writer.add(escalated.spans)

    with TraceStore.open(path, read_only=True) as reader:
        assert reader.latest_escalated() == escalated


def test_missing_file_is_refused_with_the_remedy(path):
    with pytest.raises(FailedPrecondition, match="start the platform"):
        TraceStore.open(path, read_only=True)


def test_foreign_files_are_refused(tmp_path):
    garbage, newer = tmp_path / "garbage", tmp_path / "newer.sqlite"
    garbage.write_bytes(b"not a database" * 100)
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 99")
    connection.close()

    with pytest.raises(FailedPrecondition, match="garbage"):
        TraceStore.open(garbage)
    with pytest.raises(FailedPrecondition, match="its version is 99"):
        TraceStore.open(newer)
