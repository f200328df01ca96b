"""Durations of any size a peer may send."""

import pytest
from google.protobuf.duration_pb2 import Duration

from understudy.rpc import to_seconds


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        (Duration(), 0.0),
        (Duration(seconds=1, nanos=500_000_000), 1.5),
        (Duration(seconds=-1, nanos=-500_000_000), -1.5),
        (Duration(seconds=2**62), 2.0**62),
        (Duration(seconds=-(2**63)), -(2.0**63)),
    ],
)
def test_any_duration_has_its_seconds(duration: Duration, seconds: float):
    assert to_seconds(duration) == seconds
