"""Attention and expert workers: frames between them, waits, and who is there."""

from typing import Final

from deploy.telemetry.panels import Dashboard, Panel, Query, Row, quantiles
from deploy.telemetry.queries import level, mean, or_zero, over, rate

_FRAMES: Final = "understudy_experts_frames_total"
_COMPUTE: Final = "understudy_experts_compute_seconds"
_WAIT: Final = "understudy_experts_queue_wait_seconds"

AFD: Final = Dashboard(
    "afd",
    "Attention-FFN disaggregation",
    "Whether the two pools of an LLM wait for one another, and whether frames are lost.",
    (
        Row(
            "Frames",
            (
                Panel(
                    "Frames by status",
                    "Requests that expert workers answered.",
                    "ops",
                    (Query(rate(_FRAMES, by=("status",)), "{{status}}"),),
                    is_stacked=True,
                ),
                Panel(
                    "Refused frames",
                    "Share that was not computed; callers retry on a replica.",
                    "percentunit",
                    (
                        Query(
                            over(or_zero(rate(_FRAMES, 'status!="ok"')), rate(_FRAMES)), "refused"
                        ),
                    ),
                ),
                Panel(
                    "In flight",
                    "Frames admitted and not yet answered, by worker.",
                    "short",
                    (Query(level("understudy_experts_in_flight", by=("pod",)), "{{pod}}"),),
                ),
            ),
        ),
        Row(
            "Time",
            (
                Panel(
                    "Wait for the compute thread",
                    "Of one frame, by pool.",
                    "s",
                    quantiles(_WAIT, "pool"),
                ),
                Panel(
                    "Computing one frame",
                    "By pool.",
                    "s",
                    quantiles(_COMPUTE, "pool"),
                ),
                Panel(
                    "Wait for each second of computing",
                    "Above 2 the experts are the bottleneck: add expert workers.",
                    "short",
                    (
                        Query(
                            over(
                                rate(f"{_WAIT}_sum", by=("pool",)),
                                rate(f"{_COMPUTE}_sum", by=("pool",)),
                            ),
                            "{{pool}}",
                        ),
                    ),
                ),
                Panel(
                    "Step of attention workers",
                    "Experts included, by pool.",
                    "s",
                    quantiles("understudy_attention_step_seconds", "pool"),
                ),
                Panel(
                    "Busy",
                    "Share of time in which a worker's compute thread works.",
                    "percentunit",
                    (Query(rate(f"{_COMPUTE}_sum", by=("pod",)), "{{pod}}"),),
                ),
                Panel(
                    "Frames computed together",
                    "Mean batch of one layer, by worker.",
                    "short",
                    (Query(mean("understudy_experts_batch_frames", by=("pod",)), "{{pod}}"),),
                ),
            ),
        ),
        Row(
            "Triton",
            (
                Panel(
                    "Frames by place",
                    "Where they were computed.",
                    "ops",
                    (Query(rate("understudy_experts_executed_total", by=("place",)), "{{place}}"),),
                    is_stacked=True,
                ),
                Panel(
                    "Calls",
                    "Time of one call to Triton.",
                    "s",
                    quantiles("understudy_experts_triton_call_seconds", "pool"),
                ),
                Panel(
                    "Fallbacks",
                    "Frames that Triton should have computed, and failed canaries.",
                    "ops",
                    (
                        Query(rate("understudy_experts_fallbacks_total", by=("pod",)), "{{pod}}"),
                        Query(
                            rate("understudy_experts_canary_failures_total", by=("pod",)),
                            "{{pod}} canary",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Balance",
            (
                Panel(
                    "Rows",
                    "Token rows times shards, by worker; equal lines are good placement.",
                    "ops",
                    (Query(rate("understudy_experts_rows_total", by=("pod",)), "{{pod}}"),),
                ),
                Panel(
                    "Expert workers",
                    "Those that answer and hold the pool's model.",
                    "short",
                    (Query(level("understudy_controller_replicas", by=("pool",)), "{{pool}}"),),
                ),
                Panel(
                    "Placement",
                    "New tables a second, and workers that wait for them.",
                    "short",
                    (
                        Query(
                            rate("understudy_controller_tables_total", by=("pool",)),
                            "{{pool}} tables",
                        ),
                        Query(level("understudy_controller_watchers"), "watchers"),
                    ),
                ),
            ),
        ),
    ),
)
