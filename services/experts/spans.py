"""Spans of an expert worker, aggregated: one for each attempt, group of layers and set of shards.

A span for every frame would be thousands for one answer. Rows are counted until the attention
worker says that the attempt is over, or nothing came for ten seconds; then the spans are written
with the time of the first and the last frame.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from understudy.errors import FailedPrecondition
from understudy.exchange.frame import Frame, Header
from understudy.exchange.traces import SEGMENT, TraceSegment, unpack_segments
from understudy.telemetry import remote_context, tracer
from understudy.telemetry.names import EXPERTS_COMPUTE, LAYER_COUNT, LAYER_FIRST, SHARDS, TOKENS

MAX_GROUPS: Final = 6
IDLE_S: Final = 10.0
MAX_OPEN: Final = 4096
COMPUTE_S: Final = "understudy.compute_s"
TRITON_FRAMES: Final = "understudy.triton_frames"


class SpanKey(NamedTuple):
    """What is aggregated into one span."""

    traceparent: str
    first_layer: int
    first_shard: int
    num_shards: int


@dataclass(slots=True)
class ComputeSpan:
    """Work for one attempt on one group of layers."""

    key: SpanKey
    num_layers: int
    start_ns: int
    """Unix time of the first frame."""
    end_ns: int
    tokens: int = 0
    """Token rows, summed over the layers of the group."""
    compute_ns: int = 0
    """Time the compute thread spent on the frames that carried them."""
    triton_frames: int = 0
    """Frames that Triton computed."""


class SpanAggregator:
    """Counts rows by attempt and closes spans; safe to call from several threads."""

    def __init__(
        self,
        num_layers: int,
        export: Callable[[ComputeSpan], None],
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Divide `num_layers` into at most six groups and hand finished spans to `export`."""
        self._num_layers = num_layers
        self._group_size = -(-num_layers // MAX_GROUPS)
        self._export = export
        self._clock_ns = clock_ns
        self._open: OrderedDict[SpanKey, ComputeSpan] = OrderedDict()
        self._lock = threading.Lock()

    def add(
        self,
        segments: Sequence[TraceSegment],
        header: Header,
        compute_ns: int,
        *,
        is_from_triton: bool = False,
    ) -> None:
        """Count the rows of a frame that was computed just now, and close what is idle."""
        if not segments:
            return
        now = self._clock_ns()
        first_layer = header.layer // self._group_size * self._group_size
        with self._lock:
            for segment in segments:
                key = SpanKey(
                    segment.traceparent, first_layer, header.first_shard, header.num_shards
                )
                span = self._open.get(key) or self._start(key, now - compute_ns)
                span.end_ns = now
                span.tokens += segment.rows
                span.compute_ns += compute_ns
                span.triton_frames += is_from_triton
                self._open.move_to_end(key)
            self._close_idle(now)

    def end(self, frame: Frame) -> None:
        """Close the spans of the attempts named by a TRACE_END frame.

        Raises FailedPrecondition when its length does not fit its count of traces.
        """
        if len(frame.payload) != frame.header.num_traces * SEGMENT.size:
            raise FailedPrecondition(
                f"A frame that ends {frame.header.num_traces} traces has "
                f"{frame.header.num_traces * SEGMENT.size} bytes, not {len(frame.payload)}."
            )
        ended = {segment.traceparent for segment in unpack_segments(frame.payload)}
        with self._lock:
            for key in [key for key in self._open if key.traceparent in ended]:
                self._export(self._open.pop(key))

    def close_idle(self) -> None:
        """Close the spans of attempts that were silent for ten seconds."""
        with self._lock:
            self._close_idle(self._clock_ns())

    def close(self) -> None:
        """Close every span."""
        with self._lock:
            while self._open:
                self._export(self._open.popitem(last=False)[1])

    def _start(self, key: SpanKey, start_ns: int) -> ComputeSpan:
        if len(self._open) >= MAX_OPEN:
            self._export(self._open.popitem(last=False)[1])
        num_layers = min(self._group_size, self._num_layers - key.first_layer)
        span = self._open[key] = ComputeSpan(key, num_layers, start_ns, start_ns)
        return span

    def _close_idle(self, now: int) -> None:
        while self._open:
            oldest = next(iter(self._open.values()))
            if now - oldest.end_ns < IDLE_S * 1e9:
                return
            self._export(self._open.popitem(last=False)[1])


def export_span(span: ComputeSpan) -> None:
    """Write a finished span to the tracer, under the attempt's span."""
    shards = range(span.key.first_shard, span.key.first_shard + span.key.num_shards)
    tracer(__name__).start_span(
        EXPERTS_COMPUTE,
        context=remote_context(span.key.traceparent),
        start_time=span.start_ns,
        attributes={
            LAYER_FIRST: span.key.first_layer,
            LAYER_COUNT: span.num_layers,
            TOKENS: span.tokens,
            SHARDS: list(shards),
            COMPUTE_S: span.compute_ns / 1e9,
            TRITON_FRAMES: span.triton_frames,
        },
    ).end(span.end_ns)
