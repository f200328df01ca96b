"""The attempts whose rows a frame carries, so that expert workers can add to their traces.

One segment is 32 bytes: trace id, span id of the attempt, W3C flags, and the attempt's rows.
"""

import re
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from understudy.errors import FailedPrecondition, InvalidArgument

SEGMENT: Final = struct.Struct("<16s8sB3xI")
MAX_SEGMENTS: Final = 256
MAX_ROWS: Final = 2**32 - 1
_SAMPLED: Final = 0x01
_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class TraceSegment(NamedTuple):
    """Some rows of a frame that belong to one attempt."""

    trace_id: bytes
    """16 bytes, not all zero."""
    span_id: bytes
    """8 bytes: the span that the expert workers' spans descend from."""
    flags: int
    """W3C trace flags; bit 0 says sampled."""
    rows: int
    """Token rows of this attempt in the frame; 0 when the segment ends a trace."""

    @classmethod
    def from_traceparent(cls, traceparent: str, rows: int) -> Self | None:
        """Read a W3C traceparent; None when it is empty, malformed or not sampled."""
        match = _TRACEPARENT.fullmatch(traceparent)
        if match is None:
            return None
        trace_id, span_id, flags = (bytes.fromhex(group) for group in match.groups())
        if not any(trace_id) or not any(span_id) or not flags[0] & _SAMPLED:
            return None
        return cls(trace_id, span_id, flags[0], rows)

    @property
    def traceparent(self) -> str:
        """The segment as a W3C traceparent."""
        return f"00-{self.trace_id.hex()}-{self.span_id.hex()}-{self.flags:02x}"


def pack_segments(segments: Sequence[TraceSegment]) -> bytes:
    """Return the wire form of the segments.

    Raises InvalidArgument when there are more than 256, or rows that 32 bits cannot count.
    """
    if len(segments) > MAX_SEGMENTS:
        raise InvalidArgument(
            f"A frame carries at most {MAX_SEGMENTS} trace segments, not {len(segments)}."
        )
    for segment in segments:
        if not 0 <= segment.rows <= MAX_ROWS:
            raise InvalidArgument(f"A trace segment cannot count {segment.rows} rows.")
    return b"".join(SEGMENT.pack(*segment) for segment in segments)


def unpack_segments(data: memoryview) -> tuple[TraceSegment, ...]:
    """Read segments back. Raises FailedPrecondition when the length is no multiple of 32."""
    if len(data) % SEGMENT.size:
        raise FailedPrecondition(
            f"Trace segments take {SEGMENT.size} bytes each; {len(data)} bytes cannot hold them."
        )
    return tuple(TraceSegment._make(fields) for fields in SEGMENT.iter_unpack(data))
