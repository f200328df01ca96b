"""Trace segments and lanes."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.errors import FailedPrecondition, InvalidArgument
from understudy.exchange.lanes import Lanes
from understudy.exchange.shards import shard_ids, whole_shards
from understudy.exchange.traces import TraceSegment, pack_segments, unpack_segments

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SEGMENTS = st.builds(
    TraceSegment,
    trace_id=st.binary(min_size=16, max_size=16),
    span_id=st.binary(min_size=8, max_size=8),
    flags=st.integers(0, 255),
    rows=st.integers(0, 2**32 - 1),
)
TRACEPARENT = f"00-{'4b' * 16}-{'0a' * 8}-01"


@UNHURRIED
@given(segments=st.lists(SEGMENTS, max_size=8))
def test_segments_round_trip(segments: list[TraceSegment]):
    assert unpack_segments(memoryview(pack_segments(segments))) == tuple(segments)


def test_a_sampled_traceparent_becomes_a_segment_and_back():
    segment = TraceSegment.from_traceparent(TRACEPARENT, 7)
    assert segment is not None
    assert (segment.traceparent, segment.rows) == (TRACEPARENT, 7)


@pytest.mark.parametrize(
    "text",
    ["", "00-xyz", TRACEPARENT[:-2] + "00", f"00-{'0' * 32}-{'0a' * 8}-01", TRACEPARENT + "0"],
)
def test_what_is_not_a_sampled_traceparent_gives_no_segment(text: str):
    assert TraceSegment.from_traceparent(text, 1) is None


def test_too_many_segments_or_rows_are_refused():
    segment = TraceSegment(b"t" * 16, b"s" * 8, 1, 1)
    with pytest.raises(InvalidArgument, match="at most 256"):
        pack_segments([segment] * 257)
    with pytest.raises(InvalidArgument, match="cannot count"):
        pack_segments([segment._replace(rows=2**32)])


def test_a_length_that_is_no_multiple_of_a_segment_is_refused():
    with pytest.raises(FailedPrecondition, match="31 bytes"):
        unpack_segments(memoryview(b"\0" * 31))


def test_lanes_are_taken_once_and_given_back_once():
    lanes = Lanes(2)
    assert {lanes.take(), lanes.take()} == {0, 1}
    assert not lanes.has_free
    lanes.give_back(1)
    assert lanes.take() == 1
    with pytest.raises(InvalidArgument, match="Lane 7"):
        lanes.give_back(7)


def test_shards_are_known_by_their_experts_or_by_themselves():
    assert list(shard_ids(1, 2, num_experts=8)) == [4, 5, 6, 7]
    assert list(shard_ids(1, 2, num_experts=0)) == [1]
    assert whole_shards(frozenset(range(1, 8)), 2, num_experts=8) == {1}
