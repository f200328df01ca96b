"""Durations as they come from peers."""

from typing import Final

from google.protobuf.duration_pb2 import Duration

NANOS_PER_S: Final = 1e9


def to_seconds(duration: Duration) -> float:
    """Return any duration in seconds; `timedelta` has no room for those beyond 10,000 years."""
    return duration.seconds + duration.nanos / NANOS_PER_S
