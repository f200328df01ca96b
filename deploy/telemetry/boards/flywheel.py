"""From escalations to a better SLM: what there is to learn, who trains, what it changed."""

from typing import Final

from deploy.telemetry.boards.slm_first import ESCALATED
from deploy.telemetry.panels import Dashboard, Panel, Query, Row
from deploy.telemetry.queries import level, mean, over, rate

_ANSWERS: Final = "understudy_router_answers_total"
_ATTEMPTS: Final = "gen_ai_server_request_duration_seconds_count"
_RUNS: Final = "understudy_distiller_runs"

FLYWHEEL: Final = Dashboard(
    "flywheel",
    "Flywheel",
    "Whether escalations turn into a better SLM.",
    (
        Row(
            "To learn",
            (
                Panel(
                    "Escalations",
                    "Answers that the SLM left to the LLM, by reason.",
                    "reqps",
                    (Query(rate(_ANSWERS, ESCALATED, by=("reason",)), "{{reason}}"),),
                    width=12,
                    is_stacked=True,
                ),
                Panel(
                    "Without a calibrator",
                    "Workloads that nothing was trained for yet.",
                    "reqps",
                    (
                        Query(
                            rate(_ANSWERS, 'reason="no_calibrator"', by=("workload",)),
                            "{{workload}}",
                        ),
                    ),
                    width=12,
                ),
            ),
        ),
        Row(
            "Training",
            (
                Panel(
                    "Runs",
                    "By state.",
                    "short",
                    (Query(level(_RUNS, by=("state",)), "{{state}}"),),
                    width=12,
                    is_stacked=True,
                ),
                Panel(
                    "Failed runs",
                    "Runs that failed and were not ordered again.",
                    "short",
                    (Query(level(_RUNS, 'state="failed"'), "failed"),),
                    kind="stat",
                    width=12,
                ),
            ),
        ),
        Row(
            "What it changed",
            (
                Panel(
                    "Attempts by SLM version",
                    "A promotion shows as one line taking over.",
                    "reqps",
                    (
                        Query(
                            rate(_ATTEMPTS, 'pool="slm"', by=("gen_ai_response_model",)),
                            "{{gen_ai_response_model}}",
                        ),
                    ),
                    is_stacked=True,
                ),
                Panel(
                    "Escalated",
                    "Share of answers; a promotion should lower it.",
                    "percentunit",
                    (Query(over(rate(_ANSWERS, ESCALATED), rate(_ANSWERS)), "escalated"),),
                ),
                Panel(
                    "Confidence",
                    "Mean of SLM attempts, by workload.",
                    "percentunit",
                    (
                        Query(
                            mean("understudy_router_confidence_ratio", by=("workload",)),
                            "{{workload}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)
