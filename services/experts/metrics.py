"""Instruments of the expert worker, each declared once."""

from dataclasses import dataclass
from typing import Final, Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from understudy.telemetry import Instruments

FRAME_BUCKETS: Final = (1, 2, 4, 8, 16, 32)
LAYER_BUCKETS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)


@dataclass(frozen=True, slots=True)
class ExpertsMetrics:
    """Counts, waits and computing times of frames."""

    frames: Counter
    """Requests answered, by status."""
    rows: Counter
    """Token rows computed, times shards."""
    in_flight: Gauge
    """Requests admitted and not yet answered."""
    batch_frames: Histogram
    """Frames of one layer that were computed together."""
    queue_wait: Histogram
    """Seconds from arrival to the start of the computation."""
    compute: Histogram
    """Seconds of computing one frame."""

    @classmethod
    def on(cls, registry: CollectorRegistry) -> Self:
        """Declare the instruments on a registry."""
        make = Instruments("experts", registry)
        return cls(
            frames=make.counter("frames", "Requests answered, by status.", ["status"]),
            rows=make.counter("rows", "Token rows computed, times shards."),
            in_flight=make.gauge("in_flight", "Requests admitted and not yet answered."),
            batch_frames=make.histogram(
                "batch", "Frames of one layer computed together.",
                unit="frames", buckets=FRAME_BUCKETS,
            ),
            queue_wait=make.histogram(
                "queue_wait", "Seconds from arrival to computing.", buckets=LAYER_BUCKETS_S
            ),
            compute=make.histogram(
                "compute", "Seconds of computing one frame.", buckets=LAYER_BUCKETS_S
            ),
        )  # fmt: skip
