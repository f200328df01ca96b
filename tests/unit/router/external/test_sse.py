"""Server-sent events: the same data whatever the chunks, and bounds on what is no stream."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.external import sse
from services.router.external.sse import EventReader
from understudy.errors import Unavailable

STREAM = (
    b": a comment\n\nevent: x\nid: 1\nretry: 5\ndata: one\n\n"
    b"data:two\r\ndata: halves\r\n\r\ndata: \xc3\xa9\n\n:\n\ndata: [DONE]\n\ndata: unfinished"
)
DATA = [b"one", b"two\nhalves", b"\xc3\xa9", b"[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_data_does_not_depend_on_the_chunks(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    reader = EventReader()
    chunks = [STREAM[a:b] for a, b in pairwise(places)]
    assert [data for chunk in chunks for data in reader.push(chunk)] == DATA


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        list(EventReader().push(data))
    except Unavailable:
        return


def test_lines_events_and_streams_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_LINE_BYTES", 8)
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 8)
    monkeypatch.setattr(sse, "MAX_STREAM_BYTES", 40)
    with pytest.raises(Unavailable, match="a line"):
        list(EventReader().push(b"data: 123456"))
    with pytest.raises(Unavailable, match="an event"):
        list(EventReader().push(b"data:12345\n" * 2))
    reader = EventReader()
    with pytest.raises(Unavailable, match="more than 40 bytes"):
        for _ in range(9):
            list(reader.push(b":\n\n:\n\n"))


def test_what_is_no_stream_of_events_is_refused() -> None:
    with pytest.raises(Unavailable, match="no stream"):
        list(EventReader().push(b"<html>\n"))
