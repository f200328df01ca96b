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
    executed: Counter
    """Frames computed, by place: in_process or triton."""
    fallbacks: Counter
    """Frames meant for Triton that it did not compute."""
    triton_up: Gauge
    """1 while Triton is used, 0 while it is away or was never asked."""
    triton_call: Histogram
    """Seconds of one call to Triton, failed ones included."""
    triton_loads: Counter
    """Times the canary had Triton load the package."""
    canary_failures: Counter
    """Canary questions that Triton did not answer, or answered wrongly."""

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
            executed=make.counter("executed", "Frames computed, by place.", ["place"]),
            fallbacks=make.counter("fallbacks", "Frames meant for Triton that it did not compute."),
            triton_up=make.gauge("triton_up", "1 while Triton is used."),
            triton_call=make.histogram(
                "triton_call", "Seconds of one call to Triton.", buckets=LAYER_BUCKETS_S
            ),
            triton_loads=make.counter("triton_loads", "Loads that the canary asked Triton for."),
            canary_failures=make.counter("canary_failures", "Canary questions not answered well."),
        )  # fmt: skip
