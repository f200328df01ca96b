"""Spans and traces as plain data, and their order on a waterfall."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

Value = str | bool | int | float | tuple[str | bool | int | float, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened within a span."""

    time_ns: int
    """When, in nanoseconds since the epoch."""
    name: str
    """What."""


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of work of one service."""

    trace_id: str
    """32 hex digits."""
    span_id: str
    """16 hex digits."""
    parent_id: str
    """16 hex digits, empty for a root."""
    service: str
    """Service that did it."""
    name: str
    """What it did."""
    start_ns: int
    """Start, in nanoseconds since the epoch."""
    end_ns: int
    """End, in nanoseconds since the epoch."""
    is_error: bool
    """Whether it failed."""
    status_message: str
    """One sentence about the failure; empty otherwise."""
    attributes: Mapping[str, Value]
    """Facts about it."""
    events: tuple[Event, ...] = ()
    """What happened within, in order."""

    @property
    def duration_ms(self) -> float:
        """How long it took."""
        return max(0, self.end_ns - self.start_ns) / 1e6


@dataclass(frozen=True, slots=True)
class Row:
    """A span's place on the waterfall."""

    span: Span
    """The span."""
    depth: int
    """Its distance from the root."""
    offset: float
    """Start as a share of the trace's duration, 0 to 1."""
    width: float
    """Duration as a share of the trace's duration, 0 to 1."""


@dataclass(frozen=True)
class Trace:
    """All stored spans of one request, at least one."""

    trace_id: str
    """32 hex digits."""
    spans: tuple[Span, ...]
    """Spans by start time."""

    @property
    def root(self) -> Span:
        """The first span without a stored parent."""
        known = {span.span_id for span in self.spans}
        return next((span for span in self.spans if span.parent_id not in known), self.spans[0])

    @property
    def services(self) -> tuple[str, ...]:
        """Services in order of appearance."""
        return tuple(dict.fromkeys(span.service for span in self.spans))

    @property
    def start_ns(self) -> int:
        """When the first span started."""
        return min(span.start_ns for span in self.spans)

    @property
    def duration_ms(self) -> float:
        """From the first start to the last end."""
        return max(0, max(span.end_ns for span in self.spans) - self.start_ns) / 1e6

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every span once, children below their parent, siblings by start time.

        A span whose parent is not stored stands at the margin; so does one of a cycle, which only
        a broken sender makes.
        """
        known = {span.span_id for span in self.spans}
        children: defaultdict[str, list[Span]] = defaultdict(list)
        for span in self.spans:
            children[span.parent_id if span.parent_id in known else ""].append(span)
        placed: dict[str, tuple[Span, int]] = {}
        _place(children[""], children, placed)
        _place([span for span in self.spans if span.span_id not in placed], children, placed)
        start_ns, total_ns = self.start_ns, self.duration_ms * 1e6 or 1.0
        return tuple(
            Row(
                span,
                depth,
                offset=min(1.0, (span.start_ns - start_ns) / total_ns),
                width=min(1.0, span.duration_ms * 1e6 / total_ns),
            )
            for span, depth in placed.values()
        )


def _place(
    roots: Sequence[Span],
    children: Mapping[str, Sequence[Span]],
    placed: dict[str, tuple[Span, int]],
) -> None:
    """Add the trees below `roots` in depth-first order; without recursion, traces may be deep."""
    waiting = [(span, 0) for span in reversed(roots)]
    while waiting:
        span, depth = waiting.pop()
        if span.span_id in placed:
            continue
        placed[span.span_id] = (span, depth)
        below = children.get(span.span_id, ())
        waiting.extend((child, depth + 1) for child in reversed(below))
