"""Every instrument of the router."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from services.router.answers import Attempt, Decision
from understudy.telemetry import Instruments


class RouterMetrics:
    """Counts answers, attempts, failures and what they cost."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = Instruments("router", registry)
        self.answers = make.counter(
            "answers", "Answers by answering pool and reason.", ("pool", "reason", "workload")
        )
        self.failures = make.counter("failures", "Requests that failed, by reason.", ("reason",))
        self.cost = make.counter(
            "cost", "Cost of answers in LLM positions.", ("pool",), unit="positions"
        )
        self.tokens = make.counter("tokens", "Tokens of attempts.", ("pool", "kind"), unit="tokens")
        self.request_s = make.histogram("request", "Time of whole requests.", ("pool",))
        self.attempt_s = make.histogram("attempt", "Time of attempts.", ("pool",))
        self.first_delta_s = make.histogram("first_delta", "Time to the first delta.", ("pool",))
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
        self.active = make.gauge("active_requests", "Requests being served.")

    def count_attempt(self, attempt: Attempt, num_replacements: int) -> None:
        """Count a finished attempt."""
        usage = attempt.usage
        self.attempt_s.labels(attempt.pool).observe(attempt.duration_s)
        self.tokens.labels(attempt.pool, "prompt").inc(usage.prompt_tokens)
        self.tokens.labels(attempt.pool, "cached").inc(usage.cached_prompt_tokens)
        self.tokens.labels(attempt.pool, "completion").inc(usage.completion_tokens)
        self.cost.labels(attempt.pool).inc(attempt.cost)
        self.replacements.labels(attempt.pool).inc(num_replacements)

    def count_answer(self, decision: Decision, duration_s: float) -> None:
        """Count an answered request."""
        self.answers.labels(decision.pool, decision.reason, decision.workload).inc()
        self.request_s.labels(decision.pool).observe(duration_s)
