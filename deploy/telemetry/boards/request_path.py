"""Requests from the edge to the worker: how many, how fast, what fails."""

from typing import Final

from deploy.telemetry.panels import Dashboard, Panel, Query, Row, quantiles
from deploy.telemetry.queries import level, or_zero, over, rate

OURS: Final = 'reason=~"INTERNAL|UNAVAILABLE|FAILED_PRECONDITION|DEADLINE_EXCEEDED|SEQUENCE_LOST"'
_ANSWERS: Final = "understudy_router_answers_total"
_FAILURES: Final = "understudy_router_failures_total"


def _latency(title: str, meaning: str, metric: str) -> Panel:
    return Panel(title, meaning, "s", quantiles(metric, "pool"), has_exemplars=True)


REQUEST_PATH: Final = Dashboard(
    "request-path",
    "Request path",
    "What callers get: answers, errors, and the time both take.",
    (
        Row(
            "Requests",
            (
                Panel(
                    "Answers",
                    "Answered requests, by the pool that answered.",
                    "reqps",
                    (Query(rate(_ANSWERS, by=("pool",)), "{{pool}}"),),
                    is_stacked=True,
                ),
                Panel(
                    "Errors",
                    "Requests that ended with an error, by its reason.",
                    "reqps",
                    (Query(rate(_FAILURES, by=("reason",)), "{{reason}}"),),
                    is_stacked=True,
                ),
                Panel(
                    "Requests lost by our fault",
                    "Share of requests with an error that no caller can mend; the alert's limit is "
                    "one in a thousand.",
                    "percentunit",
                    (
                        Query(
                            over(
                                or_zero(rate(_FAILURES, OURS)),
                                f"({rate(_ANSWERS)} + {or_zero(rate(_FAILURES))})",
                            ),
                            "lost",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Time",
            (
                _latency(
                    "Whole requests",
                    "From admission to the end, by answering pool.",
                    "understudy_router_request_seconds",
                ),
                _latency(
                    "First delta",
                    "Until the caller sees something; tool calls come whole.",
                    "understudy_router_first_delta_seconds",
                ),
                _latency(
                    "Time to first token",
                    "Of attempts, queues included.",
                    "gen_ai_server_time_to_first_token_seconds",
                ),
                _latency(
                    "Time per output token",
                    "Of attempts, after the first token.",
                    "gen_ai_server_time_per_output_token_seconds",
                ),
                _latency(
                    "Attempts",
                    "One model's try, as the router sees it.",
                    "gen_ai_server_request_duration_seconds",
                ),
                Panel(
                    "Queue of attention workers",
                    "From submission to the first forward.",
                    "s",
                    quantiles("understudy_attention_queue_seconds", "priority"),
                ),
            ),
        ),
        Row(
            "Load",
            (
                Panel(
                    "Requests at once",
                    "Requests that routers serve now.",
                    "short",
                    (Query(level("understudy_router_active_requests", by=("pod",)), "{{pod}}"),),
                ),
                Panel(
                    "Sequences",
                    "On attention workers, by pool.",
                    "short",
                    (
                        Query(
                            level("understudy_attention_running_sequences", by=("pool",)),
                            "{{pool}} running",
                        ),
                        Query(
                            level("understudy_attention_waiting_sequences", by=("pool",)),
                            "{{pool}} waiting",
                        ),
                    ),
                ),
                Panel(
                    "KV in use",
                    "Share of KV blocks that sequences hold.",
                    "percentunit",
                    (
                        Query(
                            "1 - "
                            + over(
                                level("understudy_attention_free_blocks", by=("pool",)),
                                level("understudy_attention_blocks", by=("pool",)),
                            ),
                            "{{pool}}",
                        ),
                    ),
                ),
                Panel(
                    "Refused on arrival",
                    "Sequences that no queue or deadline had room for.",
                    "reqps",
                    (
                        Query(
                            rate("understudy_attention_refusals_total", by=("cause", "priority")),
                            "{{cause}} {{priority}}",
                        ),
                    ),
                ),
                Panel(
                    "Preemptions",
                    "Sequences that gave their blocks back, by pool.",
                    "ops",
                    (
                        Query(
                            rate("understudy_attention_preemptions_total", by=("pool", "how")),
                            "{{pool}} {{how}}",
                        ),
                    ),
                ),
                Panel(
                    "Tokens",
                    "Positions computed, by pool and phase.",
                    "ops",
                    (
                        Query(
                            rate(
                                "understudy_attention_computed_tokens_total", by=("pool", "phase")
                            ),
                            "{{pool}} {{phase}}",
                        ),
                    ),
                    is_stacked=True,
                ),
            ),
        ),
        Row(
            "External engines",
            (
                Panel(
                    "Requests to engines",
                    "Of pools behind OpenAI-compatible engines, by how they ended; tries made "
                    "again count.",
                    "reqps",
                    (
                        Query(
                            rate(
                                "understudy_router_external_requests_total", by=("pool", "outcome")
                            ),
                            "{{pool}} {{outcome}}",
                        ),
                    ),
                    is_stacked=True,
                ),
                Panel(
                    "Engines",
                    "As each router sees them: available, resting after failures (the circuit "
                    "breaker), or away.",
                    "short",
                    (
                        Query(
                            level(
                                "understudy_router_external_endpoints", by=("pod", "pool", "state")
                            ),
                            "{{pod}} {{pool}} {{state}}",
                        ),
                    ),
                ),
                Panel(
                    "What engines did not give",
                    "Attempts without margins, resume, grammar and the like; margins of an SLM "
                    "are what its answers are trusted by.",
                    "ops",
                    (
                        Query(
                            rate("understudy_router_attempt_gaps_total", by=("pool", "gap")),
                            "{{pool}} {{gap}}",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Resilience",
            (
                Panel(
                    "Placed again",
                    "Sequences whose worker failed; callers saw a delay.",
                    "ops",
                    (
                        Query(
                            rate("understudy_router_replacements_total", by=("pool",)), "{{pool}}"
                        ),
                    ),
                ),
                Panel(
                    "Without resume",
                    "Requests served while the journal was away.",
                    "reqps",
                    (Query(rate("understudy_router_unjournalled_total"), "unjournalled"),),
                ),
                Panel(
                    "Files refused",
                    "Keys and authorities that routers cannot take up; those before stay in use.",
                    "short",
                    (Query(level("understudy_router_refused_files", by=("file",)), "{{file}}"),),
                ),
                Panel(
                    "Calls by code",
                    "gRPC calls of all services that did not end well.",
                    "ops",
                    (
                        Query(
                            rate(
                                "understudy_serving_calls_total",
                                'code!="OK"',
                                by=("component", "code"),
                            ),
                            "{{component}} {{code}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)
