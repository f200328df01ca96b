"""Every instrument of the router."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry

from services.router.answers import Attempt, Decision
from services.router.policy import LLM, SLM
from services.router.transcripts import Transcript
from understudy.errors import REASONS
from understudy.telemetry import Instruments

ATTEMPT_LABELS: Final = (
    "pool",
    "gen_ai_operation_name",
    "gen_ai_provider_name",
    "gen_ai_request_model",
    "gen_ai_response_model",
)
TOKEN_BUCKETS_S: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip
HOLD_OUTCOMES: Final = ("served", "refused", "left")
"""A worker came, the wait was refused, or the caller or its deadline ended it."""
ENDPOINT_STATES: Final = ("available", "resting", "away")
WATCHED_FILES: Final = ("api_keys", "engine_key", "engine_ca")
REPORT_OUTCOMES: Final = ("taken", "failed")
EXTERNAL_OUTCOMES: Final = (
    "answered", "limited", "refused", "failed", "silent", "broken", "left",
)  # fmt: skip
"""Of one request to an external engine: HTTP 429, other 4xx, 5xx or garbled, no sign of life, a
broken connection, a caller that left."""
CONFIDENCE_BUCKETS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99)

Exemplar = dict[str, str] | None


class RouterMetrics:
    """Counts answers, attempts, failures and what they cost."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = Instruments("router", registry)
        self.answers = make.counter(
            "answers", "Answers by answering pool and reason.", ("pool", "reason", "workload")
        )
        self.verified = make.counter(
            "verified_answers", "Answers by what their verifiers say.", ("workload", "verdict")
        )
        self.confidence = make.histogram(
            "confidence", "Calibrated confidence of SLM attempts.", ("workload",),
            unit="ratio", buckets=CONFIDENCE_BUCKETS,
        )  # fmt: skip
        self.failures = make.counter("failures", "Requests that failed, by reason.", ("reason",))
        self.cost = make.counter(
            "cost", "Cost of attempts in LLM positions.", ("pool",), unit="positions"
        )
        self.llm_alone_cost = make.counter(
            "llm_alone_cost", "What the LLM alone would have cost.", unit="positions"
        )
        self.tokens = make.counter(
            "attempt", "Tokens of attempts.", ("pool", "kind"), unit="tokens"
        )
        self.request_s = make.histogram("request", "Time of whole requests.", ("pool",))
        self.first_delta_s = make.histogram("first_delta", "Time to the first delta.", ("pool",))
        self.attempt_s = make.convention(
            "gen_ai.server.request.duration", "Time of attempts.", ATTEMPT_LABELS
        )
        self.first_token_s = make.convention(
            "gen_ai.server.time_to_first_token", "Time to an attempt's first token.", ATTEMPT_LABELS
        )
        self.output_token_s = make.convention(
            "gen_ai.server.time_per_output_token",
            "Time of an attempt's tokens after the first.",
            ATTEMPT_LABELS,
            TOKEN_BUCKETS_S,
        )
        self.replacements = make.counter(
            "replacements", "Sequences placed again after their worker failed.", ("pool",)
        )
        self.disagreements = make.counter(
            "validator_disagreements",
            "Complete answers that the grammar allowed and the independent validator refused.",
            ("pool",),
        )
        self.unjournalled = make.counter(
            "unjournalled", "Requests served without resume, because the journal was away."
        )
        self.held = make.gauge(
            "held_requests", "Requests that wait for a worker of a pool without any.", ("pool",)
        )
        self.holds = make.counter(
            "holds", "Requests that waited for a pool without workers, by their end.",
            ("pool", "outcome"),
        )  # fmt: skip
        self.reports = make.counter(
            "reports", "Reports of what is held, to the controller.", ("outcome",)
        )
        self.external = make.counter(
            "external_requests", "Requests to external engines, by their end.", ("pool", "outcome")
        )
        self.endpoints = make.gauge(
            "external_endpoints", "Engines of external pools, by state.", ("pool", "state")
        )
        self.gaps = make.counter(
            "attempt_gaps", "Attempts by what an external engine did not give.", ("pool", "gap")
        )
        self.refused_files = make.gauge(
            "refused_files", "Files with content that cannot be used.", ("file",)
        )
        self.active = make.gauge("active_requests", "Requests being served.")
        self._watched_files: dict[str, list[Callable[[], bool]]] = {}
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        """Expose what is rare from the start: Prometheus sees no increase in a first sample."""
        for reason in REASONS:
            self.failures.labels(reason)
        for pool in (SLM, LLM):
            self.start_pool(pool)
        for outcome in REPORT_OUTCOMES:
            self.reports.labels(outcome)
        for kind in WATCHED_FILES:
            self.refused_files.labels(kind)

    def start_pool(self, pool: str) -> None:
        """Expose what a pool may count."""
        self.replacements.labels(pool)
        self.disagreements.labels(pool)
        self.held.labels(pool)
        for outcome in HOLD_OUTCOMES:
            self.holds.labels(pool, outcome)
        for outcome in EXTERNAL_OUTCOMES:
            self.external.labels(pool, outcome)

    def watch_endpoints(self, pool: str, states: Callable[[], Sequence[str]]) -> None:
        """Ask with each scrape for the state of every engine of a pool."""
        for state in ENDPOINT_STATES:
            count = partial(_count, states, state)
            self.endpoints.labels(pool, state).set_function(count)

    def watch_file(self, kind: str, is_refused: Callable[[], bool]) -> None:
        """Ask with each scrape whether what a file holds cannot be used."""
        watched = self._watched_files.setdefault(kind, [])
        watched.append(is_refused)
        self.refused_files.labels(kind).set_function(lambda: sum(one() for one in watched))

    def count_attempt(
        self,
        attempt: Attempt,
        transcript: Transcript,
        labels: Sequence[str],
        exemplar: Exemplar,
    ) -> None:
        """Count a finished attempt; `labels` are the values of `ATTEMPT_LABELS`.

        The time to its first token was observed when that came.
        """
        usage = attempt.usage
        self.tokens.labels(attempt.pool, "prompt").inc(usage.prompt_tokens)
        self.tokens.labels(attempt.pool, "cached").inc(usage.cached_prompt_tokens)
        self.tokens.labels(attempt.pool, "completion").inc(usage.completion_tokens)
        self.cost.labels(attempt.pool).inc(attempt.cost)
        self.replacements.labels(attempt.pool).inc(transcript.num_replacements)
        for gap in attempt.gaps:
            self.gaps.labels(attempt.pool, gap).inc()
        for histogram, seconds in (
            (self.attempt_s, attempt.duration_s),
            (self.output_token_s, transcript.time_per_output_token_s),
        ):
            if seconds is not None:
                histogram.labels(*labels).observe(seconds, exemplar)

    def count_answer(self, decision: Decision, duration_s: float, exemplar: Exemplar) -> None:
        """Count an answered request."""
        self.answers.labels(decision.pool, decision.reason, decision.workload).inc()
        self.verified.labels(decision.workload, decision.verdict).inc()
        self.llm_alone_cost.inc(decision.llm_alone_cost)
        self.request_s.labels(decision.pool).observe(duration_s, exemplar)
        if decision.confidence is not None:
            self.confidence.labels(decision.workload).observe(decision.confidence, exemplar)


def _count(states: Callable[[], Sequence[str]], state: str) -> int:
    return states().count(state)
