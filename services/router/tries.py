"""Begins attempts of one request and puts down what became of them: job, span, facts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from opentelemetry.trace import Span, Status, StatusCode, set_span_in_context, use_span

from services.router.admission import Admission
from services.router.answers import Attempt, Usage
from services.router.attempts import AttemptRun, Job
from services.router.external.pool import ExternalPool
from services.router.external.runs import ExternalRun
from services.router.holding import Holding, Patience
from services.router.metrics import RouterMetrics
from services.router.plans import Plan
from services.router.policy import AUTO, LLM, SLM, attempt_cost
from services.router.requests import Request
from services.router.speaking import NativeSpeaker, Speaker
from services.router.stage import Stage
from services.router.tenants import Tenants
from services.router.transcripts import Transcript
from understudy.errors import UnderstudyError
from understudy.rpc import Deadline, traceparent
from understudy.telemetry import exemplar, names, tracer
from understudy.text.tokenizer import Tokenizer
from understudy.workloads import Verdict


@dataclass(frozen=True, slots=True)
class Company:
    """What all requests of a router share."""

    stage: Stage
    tokenizer: Tokenizer | None
    """None: no pool is native."""
    tenants: Tenants
    admission: Admission
    metrics: RouterMetrics
    holding: Holding
    slm_patience_s: float
    llm_patience_s: float
    wake_patience_s: float

    def patience(self, pool: str, *, may_wake: bool) -> Patience:
        """Return how long an attempt waits for the pool's first worker."""
        worker_s = self.slm_patience_s if pool == SLM else self.llm_patience_s
        return Patience(worker_s, self.wake_patience_s if may_wake else 0.0)


@dataclass(frozen=True, slots=True)
class Assignment:
    """One admitted request and what both arms are given."""

    request: Request
    plan: Plan
    tenant: str
    deadline: Deadline
    span: Span
    """Root span of the request."""


class Try:
    """A running attempt."""

    def __init__(
        self, company: Company, assignment: Assignment, pool: str, speaker: Speaker
    ) -> None:
        self.speaker = speaker
        self.pool = pool
        self._company = company
        self._assignment = assignment

    def facts(self, verdicts: Sequence[Verdict], confidence: float | None) -> Attempt:
        """Return the finished attempt and count it."""
        transcript = self.speaker.transcript
        plan = self._assignment.plan
        usage = transcript.usage(len(plan.tokens))
        attempt = Attempt(
            pool=self.pool,
            model=transcript.model,
            adapter=plan.adapter if self.pool == LLM and "adapter" not in transcript.gaps else "",
            usage=usage,
            forced_tokens=sum(transcript.is_forced),
            confidence=confidence,
            computed_positions=transcript.computed_positions,
            cost=_cost(self._company, self.pool, transcript, usage),
            duration_s=transcript.duration_s,
            verdicts=tuple(verdicts),
            worker=transcript.worker,
            gaps=tuple(sorted(transcript.gaps)),
        )
        self._company.metrics.count_attempt(
            attempt,
            transcript,
            _labels(self._company, self._assignment, self.pool, transcript),
            exemplar(self._assignment.span.get_span_context()),
        )
        return attempt


@contextmanager
def begin(
    company: Company,
    assignment: Assignment,
    pool: str,
    committed: Sequence[int] = (),
    *,
    may_wake: bool = True,
) -> Iterator[Try]:
    """Begin an attempt on a pool under its own span, which ends with the block.

    It waits for a pool that is being woken, unless another pool stands in (`may_wake` False).
    """
    span = tracer(__name__).start_span(
        names.ROUTER_ATTEMPT,
        context=set_span_in_context(assignment.span),
        attributes={
            names.POOL: pool,
            names.OPERATION: assignment.request.operation,
            names.PROVIDER: company.stage.pools[pool].provider,
            names.REQUEST_MODEL: assignment.request.model or AUTO,
        },
    )
    with use_span(span, end_on_exit=False):
        parent = traceparent()
    patience = company.patience(pool, may_wake=may_wake)
    job = _job(company, assignment, pool, patience, parent)
    speaker = _speaker(company, assignment, pool, job, committed)
    speaker.transcript.on_first_token = partial(
        _count_first_token, company, assignment, pool, speaker.transcript
    )
    try:
        yield Try(company, assignment, pool, speaker)
    except UnderstudyError as error:
        span.set_attribute(names.ERROR_TYPE, error.reason)
        span.set_status(Status(StatusCode.ERROR, error.reason))
        raise
    finally:
        transcript = speaker.transcript
        usage = transcript.usage(len(assignment.plan.tokens))
        _describe(span, transcript, usage, _cost(company, pool, transcript, usage))
        span.end()


def _count_first_token(
    company: Company, assignment: Assignment, pool: str, transcript: Transcript
) -> None:
    """Observe the first token when it comes: an attempt that is left later counts too."""
    seconds = transcript.time_to_first_token_s
    assert seconds is not None
    labels = _labels(company, assignment, pool, transcript)
    company.metrics.first_token_s.labels(*labels).observe(
        seconds, exemplar(assignment.span.get_span_context())
    )


def _labels(
    company: Company, assignment: Assignment, pool: str, transcript: Transcript
) -> tuple[str, ...]:
    """Return the values of `ATTEMPT_LABELS`."""
    request, provider = assignment.request, company.stage.pools[pool].provider
    return (pool, request.operation, provider, request.model or AUTO, transcript.model)


def _cost(company: Company, pool: str, transcript: Transcript, usage: Usage) -> float:
    """Return what an attempt cost: its answer, and what broken tries of an engine had done."""
    parameters = company.stage.position_parameters(pool)
    return attempt_cost(usage, *parameters) + attempt_cost(transcript.lost, *parameters)


def _describe(span: Span, transcript: Transcript, usage: Usage, cost: float) -> None:
    """Put down what became of an attempt."""
    span.set_attributes(
        {
            names.MODEL: transcript.model,
            names.PROMPT_TOKENS: usage.prompt_tokens,
            names.CACHED_TOKENS: usage.cached_prompt_tokens,
            names.ATTEMPT_TOKENS: usage.completion_tokens,
            names.COMPUTED_POSITIONS: transcript.computed_positions,
            names.COST: cost,
        }
    )
    if transcript.gaps:
        span.set_attribute(names.GAPS, tuple(sorted(transcript.gaps)))
    if transcript.held_s:
        span.set_attribute(names.HELD_S, transcript.held_s)
    if transcript.is_ended:
        span.set_attribute(names.FINISH_REASONS, (transcript.finish_reason,))


def _speaker(
    company: Company, assignment: Assignment, pool: str, job: Job, committed: Sequence[int]
) -> Speaker:
    request, cast = assignment.request, company.stage.pools[pool]
    if isinstance(cast, ExternalPool):
        return ExternalRun(cast, company.holding, job, request)
    assert company.tokenizer is not None
    run = AttemptRun(cast, company.holding, job, tuple(committed))
    return NativeSpeaker(run, company.tokenizer, request.sampling.stop)


def _job(
    company: Company, assignment: Assignment, pool: str, patience: Patience, parent: str
) -> Job:
    tenants, tenant = company.tenants, assignment.tenant
    return Job(
        plan=assignment.plan,
        sampling=assignment.request.sampling,
        adapter=assignment.plan.adapter if pool == LLM else "",
        tenant=tenant,
        kv_root=lambda digest: tenants.kv_root(tenant, digest),
        deadline=assignment.deadline,
        patience=patience,
        traceparent=parent,
        priority=assignment.request.priority,
    )
