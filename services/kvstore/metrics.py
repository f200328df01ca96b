"""Instruments of the kvstore, each declared once."""

from dataclasses import dataclass
from typing import Final, Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from understudy.chunks import Mismatch
from understudy.telemetry import Instruments

REDIS_BUCKETS_S: Final = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)


@dataclass(frozen=True, slots=True)
class KvStoreMetrics:
    """Hits, refusals, bytes, and how Redis does."""

    chunks: Counter
    """Chunks asked for, by outcome: memory, redis or miss."""
    refused: Counter
    """Bytes that were not the chunk they were stored as, by source and mismatch."""
    evicted: Counter
    """Chunks that left host memory for others."""
    memory_bytes: Gauge
    """Host memory in use."""
    waiting_bytes: Gauge
    """Bytes waiting to be written to Redis."""
    dropped_writes: Counter
    """Chunks that were not written to Redis."""
    redis_operations: Counter
    """Operations on Redis, by operation and outcome: ok, failed or skipped."""
    redis_seconds: Histogram
    """Seconds until Redis answered."""

    @classmethod
    def on(cls, registry: CollectorRegistry) -> Self:
        """Declare the instruments on a registry."""
        make = Instruments("kvstore", registry)
        metrics = cls(
            chunks=make.counter("chunks", "Chunks asked for, by outcome.", ["outcome"]),
            refused=make.counter(
                "refused_chunks", "Bytes that were not the chunk asked for.", ["source", "mismatch"]
            ),
            evicted=make.counter("evicted_chunks", "Chunks that left host memory."),
            memory_bytes=make.gauge("memory", "Host memory in use.", unit="bytes"),
            waiting_bytes=make.gauge("waiting", "Bytes waiting for Redis.", unit="bytes"),
            dropped_writes=make.counter("dropped_writes", "Chunks not written to Redis."),
            redis_operations=make.counter(
                "redis_operations", "Operations on Redis.", ["operation", "outcome"]
            ),
            redis_seconds=make.histogram(
                "redis", "Seconds until Redis answered.", ["operation"], buckets=REDIS_BUCKETS_S
            ),
        )
        # Prometheus sees no increase in a first sample, and one of these is worth an alert.
        for source in ("put", "redis"):
            for mismatch in Mismatch:
                metrics.refused.labels(source, mismatch)
        return metrics
