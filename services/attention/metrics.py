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
        self.preemptions = make.counter(
            "preemptions",
            "Sequences that gave their blocks back, by how their KV returns (recompute or swap).",
            labels=("how",),
        )
        self.deferrals = make.counter(
            "deferrals", "Sequences that waited for a prefix which another was computing."
        )
        self.refusals = make.counter(
            "refusals",
            "Sequences refused on arrival (queue or deadline), by class.",
            labels=("cause", "priority"),
        )
        self.scheduled_tokens = make.counter(
            "scheduled_tokens", "Positions computed, by class.", labels=("priority",)
        )
        self.queue_seconds = make.histogram(
            "queue", "Time from submission to the first forward, by class.", labels=("priority",)
        )
        self.running_sequences = make.gauge("running_sequences", "Sequences that hold blocks.")
        self.waiting_sequences = make.gauge("waiting_sequences", "Sequences waiting for blocks.")
        self.waiting_by_priority = make.gauge(
            "waiting_by_priority", "Sequences waiting for blocks, by class.", labels=("priority",)
        )
        self.tenants = make.gauge("tenants", "Tenants with live sequences, once per class.")
        self.blocks = make.gauge("blocks", "KV blocks of this worker.")
        self.held_blocks = make.gauge("held_blocks", "KV blocks held for waiting sequences.")
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
