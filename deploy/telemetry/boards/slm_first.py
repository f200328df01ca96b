"""Who answers, how sure it was, and what a success costs."""

from typing import Final

from deploy.telemetry.panels import Dashboard, Panel, Query, Row
from deploy.telemetry.queries import mean, over, quantile, rate

ESCALATED: Final = 'reason=~"low_confidence|verifier_refused|slm_unavailable"'
_ANSWERS: Final = "understudy_router_answers_total"
_COST: Final = "understudy_router_cost_positions_total"
_VERIFIED: Final = "understudy_router_verified_answers_total"
_PASSED: Final = 'verdict="passed"'
_CONFIDENCE: Final = "understudy_router_confidence_ratio"

SLM_FIRST: Final = Dashboard(
    "slm-first",
    "SLM first and cost per success",
    "Whether the small model carries the load, and what one successful task costs.",
    (
        Row(
            "Who answers",
            (
                Panel(
                    "Answered by the SLM",
                    "Share of all answers.",
                    "percentunit",
                    (Query(over(rate(_ANSWERS, 'pool="slm"'), rate(_ANSWERS)), "SLM"),),
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "Why",
                    "Answers by reason.",
                    "reqps",
                    (Query(rate(_ANSWERS, by=("reason",)), "{{reason}}"),),
                    width=10,
                    is_stacked=True,
                ),
                Panel(
                    "Escalated",
                    "Share of answers that the LLM gave instead of the SLM.",
                    "percentunit",
                    (
                        Query(
                            over(
                                rate(_ANSWERS, ESCALATED, by=("workload",)),
                                rate(_ANSWERS, by=("workload",)),
                            ),
                            "{{workload}}",
                        ),
                    ),
                    width=10,
                ),
            ),
        ),
        Row(
            "Cost",
            (
                Panel(
                    "Cost against the LLM alone",
                    "Cost of all attempts over that of the LLM alone; 100 % saves nothing.",
                    "percentunit",
                    (
                        Query(
                            over(
                                rate(_COST),
                                rate("understudy_router_llm_alone_cost_positions_total"),
                            ),
                            "ratio",
                        ),
                    ),
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "Cost per success (CPS)",
                    "LLM positions spent for each answer that all its verifiers passed.",
                    "short",
                    (Query(over(rate(_COST), rate(_VERIFIED, _PASSED)), "CPS"),),
                    width=10,
                ),
                Panel(
                    "Cost by pool",
                    "LLM positions a second.",
                    "short",
                    (Query(rate(_COST, by=("pool",)), "{{pool}}"),),
                    width=10,
                    is_stacked=True,
                ),
                Panel(
                    "Tokens",
                    "Of attempts, by pool; cached ones are part of the prompt's.",
                    "ops",
                    (
                        Query(
                            rate("understudy_router_attempt_tokens_total", by=("pool", "kind")),
                            "{{pool}} {{kind}}",
                        ),
                    ),
                    width=12,
                ),
                Panel(
                    "Time of attempts",
                    "90th percentile, by pool.",
                    "s",
                    (
                        Query(
                            quantile(0.9, "gen_ai_server_request_duration_seconds", by=("pool",)),
                            "{{pool}}",
                        ),
                    ),
                    width=12,
                    has_exemplars=True,
                ),
            ),
        ),
        Row(
            "Quality",
            (
                Panel(
                    "Passed",
                    "Share of verified answers that passed, by workload.",
                    "percentunit",
                    (
                        Query(
                            over(
                                rate(_VERIFIED, _PASSED, by=("workload",)),
                                rate(_VERIFIED, 'verdict!="none"', by=("workload",)),
                            ),
                            "{{workload}}",
                        ),
                    ),
                ),
                Panel(
                    "Confidence of the SLM",
                    "Calibrated P(answer passes): mean and quartiles.",
                    "percentunit",
                    (
                        Query(quantile(0.25, _CONFIDENCE, by=("workload",)), "{{workload}} p25"),
                        Query(quantile(0.75, _CONFIDENCE, by=("workload",)), "{{workload}} p75"),
                        Query(mean(_CONFIDENCE, by=("workload",)), "{{workload}} mean"),
                    ),
                    has_exemplars=True,
                ),
                Panel(
                    "Grammar against validator",
                    "Answers that the grammar allowed and the validator refused; more than none is "
                    "a bug in one of them.",
                    "ops",
                    (
                        Query(
                            rate("understudy_router_validator_disagreements_total", by=("pool",)),
                            "{{pool}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)
