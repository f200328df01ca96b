"""KV chunks between workers, host memory and Redis: what is found, what it costs, what fails."""

from typing import Final

from deploy.telemetry.panels import Dashboard, Panel, Query, Row
from deploy.telemetry.queries import level, over, quantile, rate

_CHUNKS: Final = "understudy_kvstore_chunks_total"
_OPERATIONS: Final = "understudy_kvstore_redis_operations_total"
_CACHED: Final = "understudy_attention_cached_tokens_total"
_PREFILLED: Final = rate(
    "understudy_attention_computed_tokens_total", 'phase="prefill"', by=("pool",)
)

KV_TIER: Final = Dashboard(
    "kv-tier",
    "KV tier",
    "Whether prefixes are found again. Losing all of it costs hits and nothing else.",
    (
        Row(
            "Hits",
            (
                Panel(
                    "Prompt tokens from caches",
                    "Share of prompt tokens that were not computed, by pool.",
                    "percentunit",
                    (
                        Query(
                            over(
                                rate(_CACHED, by=("pool",)),
                                f"({rate(_CACHED, by=('pool',))} + {_PREFILLED})",
                            ),
                            "{{pool}}",
                        ),
                    ),
                ),
                Panel(
                    "Cached tokens by source",
                    "Blocks of the worker itself, or the kvstore.",
                    "ops",
                    (Query(rate(_CACHED, by=("pool", "source")), "{{pool}} {{source}}"),),
                    is_stacked=True,
                ),
                Panel(
                    "Chunks found",
                    "Share of chunks read, by tier.",
                    "percentunit",
                    (
                        Query(
                            over(
                                rate(_CHUNKS, 'outcome!="miss"', by=("outcome",)),
                                f"on () group_left {rate(_CHUNKS)}",
                            ),
                            "{{outcome}}",
                        ),
                    ),
                    is_stacked=True,
                ),
            ),
        ),
        Row(
            "Redis",
            (
                Panel(
                    "Operations",
                    "By outcome; skipped while the circuit breaker rests.",
                    "ops",
                    (Query(rate(_OPERATIONS, by=("outcome",)), "{{outcome}}"),),
                    is_stacked=True,
                ),
                Panel(
                    "Time to answer",
                    "99th percentile by operation.",
                    "s",
                    (
                        Query(
                            quantile(0.99, "understudy_kvstore_redis_seconds", by=("operation",)),
                            "{{operation}}",
                        ),
                    ),
                ),
                Panel(
                    "Writes that were dropped",
                    "Too much waits, or Redis is left alone.",
                    "ops",
                    (
                        Query(
                            rate("understudy_kvstore_dropped_writes_total", by=("pod",)), "{{pod}}"
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Memory and transfers",
            (
                Panel(
                    "Host memory",
                    "Chunks in memory, and bytes waiting for Redis.",
                    "bytes",
                    (
                        Query(
                            level("understudy_kvstore_memory_bytes", by=("pod",)), "{{pod}} memory"
                        ),
                        Query(
                            level("understudy_kvstore_waiting_bytes", by=("pod",)),
                            "{{pod}} waiting",
                        ),
                    ),
                ),
                Panel(
                    "Chunks moved",
                    "Between attention workers and kvstores, and evicted ones.",
                    "ops",
                    (
                        Query(rate("understudy_attention_kv_chunks_read_total"), "read"),
                        Query(rate("understudy_attention_kv_chunks_written_total"), "written"),
                        Query(rate("understudy_kvstore_evicted_chunks_total"), "evicted"),
                    ),
                ),
                Panel(
                    "Refused bytes and failures",
                    "Bytes that were not the chunk asked for, and operations that failed.",
                    "ops",
                    (
                        Query(
                            rate(
                                "understudy_kvstore_refused_chunks_total", by=("source", "mismatch")
                            ),
                            "{{source}} {{mismatch}}",
                        ),
                        Query(
                            rate("understudy_attention_kv_failures_total", by=("operation",)),
                            "failed {{operation}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)
