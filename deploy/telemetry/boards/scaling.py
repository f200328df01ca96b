"""Pool sizes beside the signals that they follow."""

from typing import Final

from deploy.telemetry.panels import Dashboard, Panel, Query, Row
from deploy.telemetry.queries import level, over, quantile, rate, selector

_REPLICAS: Final = "understudy_controller_scaling_replicas"
_WORKERS: Final = 'component=~"attention|experts"'

SCALING: Final = Dashboard(
    "scaling",
    "Scaling",
    "How large each pool is, and what asks for more or less.",
    (
        Row(
            "Sizes",
            (
                Panel(
                    "Workers that answer scrapes",
                    "By pool and part.",
                    "short",
                    (
                        Query(
                            f"sum by (pool, component) ({selector('up', _WORKERS)})",
                            "{{pool}} {{component}}",
                        ),
                    ),
                    width=12,
                ),
                Panel(
                    "Expert workers in placement",
                    "Those that hold the pool's model.",
                    "short",
                    (Query(level("understudy_controller_replicas", by=("pool",)), "{{pool}}"),),
                    width=12,
                ),
                Panel(
                    "Held for sleeping pools",
                    "Requests that wait for a worker of a pool without any.",
                    "short",
                    (Query(level("understudy_router_held_requests", by=("pool",)), "{{pool}}"),),
                    width=12,
                ),
                Panel(
                    "Waits for sleeping pools",
                    "Requests a second, by how their wait ended.",
                    "ops",
                    (
                        Query(
                            rate("understudy_router_holds_total", by=("pool", "outcome")),
                            "{{pool}} {{outcome}}",
                        ),
                    ),
                    width=12,
                    is_stacked=True,
                ),
            ),
        ),
        Row(
            "Decisions",
            (
                Panel(
                    "Needed and decided",
                    "By pool and part; needed above decided is held back.",
                    "short",
                    (
                        Query(
                            level(_REPLICAS, 'kind="needed"', by=("pool", "part")),
                            "{{pool}} {{part}} needed",
                        ),
                        Query(
                            level(_REPLICAS, 'kind="decided"', by=("pool", "part")),
                            "{{pool}} {{part}} decided",
                        ),
                    ),
                    width=12,
                ),
                Panel(
                    "Held back",
                    "Decisions a second, by cause.",
                    "ops",
                    (
                        Query(
                            rate(
                                "understudy_controller_scaling_holds_total",
                                by=("pool", "part", "cause"),
                            ),
                            "{{pool}} {{part}} {{cause}}",
                        ),
                    ),
                    width=12,
                    is_stacked=True,
                ),
                Panel(
                    "Changes",
                    "By pool, part and direction; both directions at once is flapping.",
                    "ops",
                    (
                        Query(
                            rate(
                                "understudy_controller_scaling_changes_total",
                                by=("pool", "part", "direction"),
                            ),
                            "{{pool}} {{part}} {{direction}}",
                        ),
                    ),
                ),
                Panel(
                    "Budget",
                    "GPUs and price an hour of what was decided.",
                    "short",
                    (
                        Query(level("understudy_controller_scaling_gpus"), "GPUs"),
                        Query(level("understudy_controller_scaling_cost_per_hour"), "price"),
                    ),
                ),
                Panel(
                    "Ratio",
                    "Fitted attention workers to one expert worker.",
                    "short",
                    (
                        Query(
                            level("understudy_controller_scaling_ratio", by=("pool",)), "{{pool}}"
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Signals of attention workers",
            (
                Panel(
                    "Time to first token",
                    "90th percentile by pool.",
                    "s",
                    (
                        Query(
                            quantile(
                                0.9, "gen_ai_server_time_to_first_token_seconds", by=("pool",)
                            ),
                            "{{pool}}",
                        ),
                    ),
                    has_exemplars=True,
                ),
                Panel(
                    "Time per output token",
                    "90th percentile by pool.",
                    "s",
                    (
                        Query(
                            quantile(
                                0.9, "gen_ai_server_time_per_output_token_seconds", by=("pool",)
                            ),
                            "{{pool}}",
                        ),
                    ),
                    has_exemplars=True,
                ),
                Panel(
                    "Waiting sequences",
                    "By pool and class.",
                    "short",
                    (
                        Query(
                            level(
                                "understudy_attention_waiting_by_priority", by=("pool", "priority")
                            ),
                            "{{pool}} {{priority}}",
                        ),
                    ),
                    is_stacked=True,
                ),
                Panel(
                    "KV in use",
                    "Share of blocks that sequences hold, by worker.",
                    "percentunit",
                    (
                        Query(
                            "1 - "
                            + over(
                                level("understudy_attention_free_blocks", by=("pool", "pod")),
                                level("understudy_attention_blocks", by=("pool", "pod")),
                            ),
                            "{{pool}} {{pod}}",
                        ),
                    ),
                    width=12,
                ),
                Panel(
                    "Busy",
                    "Share of time that engines spend in steps, by worker.",
                    "percentunit",
                    (
                        Query(
                            rate("understudy_attention_step_seconds_sum", by=("pool", "pod")),
                            "{{pool}} {{pod}}",
                        ),
                    ),
                    width=12,
                ),
            ),
        ),
        Row(
            "Signals of expert workers",
            (
                Panel(
                    "Rows for each frame",
                    "Tokens that one call brings, by pool.",
                    "short",
                    (
                        Query(
                            over(
                                rate("understudy_experts_rows_total", by=("pool",)),
                                rate("understudy_experts_compute_seconds_count", by=("pool",)),
                            ),
                            "{{pool}}",
                        ),
                    ),
                    width=12,
                ),
                Panel(
                    "Wait of frames",
                    "90th percentile by pool.",
                    "s",
                    (
                        Query(
                            quantile(0.9, "understudy_experts_queue_wait_seconds", by=("pool",)),
                            "{{pool}}",
                        ),
                    ),
                    width=12,
                ),
            ),
        ),
    ),
)
