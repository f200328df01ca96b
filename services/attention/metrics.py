"""Every instrument of the attention worker, declared once."""

from prometheus_client import CollectorRegistry

from understudy.telemetry.metrics import Instruments


class EngineMetrics:
    """What the engine thread measures."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = Instruments("attention", registry)
        self.step_seconds = make.histogram("step", "Duration of one engine step.")
        self.computed_tokens = make.counter(
            "computed_tokens", "Positions computed.", labels=("phase",)
        )
        self.cached_tokens = make.counter(
            "cached_tokens", "Prompt tokens whose KV was not computed.", labels=("source",)
        )
        self.generated_tokens = make.counter(
            "generated_tokens", "Output tokens, forced ones included."
        )
        self.ended_sequences = make.counter(
            "ended_sequences",
            "Sequences that ended, by finish or error reason.",
            labels=("reason",),
        )
        self.preemptions = make.counter("preemptions", "Sequences that gave their blocks back.")
        self.running_sequences = make.gauge("running_sequences", "Sequences that hold blocks.")
        self.waiting_sequences = make.gauge("waiting_sequences", "Sequences waiting for blocks.")
        self.free_blocks = make.gauge("free_blocks", "KV blocks that no sequence holds.")


class TierMetrics:
    """What the KV tier measures."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = Instruments("attention", registry)
        self.chunks_read = make.counter("kv_chunks_read", "Chunks read from the kvstore.")
        self.chunks_written = make.counter("kv_chunks_written", "Chunks the kvstore took.")
        self.failures = make.counter(
            "kv_failures", "Failed kvstore operations; each cost hits only.", labels=("operation",)
        )


class SessionMetrics:
    """What the sessions of routers measure."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = Instruments("attention", registry)
        self.sessions = make.gauge("sessions", "Routers connected.")
        self.slow_readers = make.counter(
            "slow_readers", "Sessions that lost their sequences because they were read too slowly."
        )
