"""Leads requests through admission, plan, journal and answer; the edges translate its events.

A stream that another one took over (a resumed or repeated request) follows the journal from then
on, so that both callers see the same answer, and takes it up again should that one leave.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, nullcontext

from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    Span,
    SpanKind,
    Status,
    StatusCode,
    format_trace_id,
)

from services.router.answering import Answering
from services.router.answers import Event, Started
from services.router.following import Following
from services.router.journal import Entry, Journal, TakenOverError
from services.router.plans import Planner
from services.router.records import Replay, replay
from services.router.requests import Request, check_request
from services.router.stage import ModelCard
from services.router.tries import Assignment, Company
from understudy.errors import Internal, NotFound, UnderstudyError
from understudy.rpc import Deadline
from understudy.rpc.metadata import current_request_id
from understudy.telemetry import names, tracer

logger = logging.getLogger(__name__)


class Conductor:
    """Answers requests of authenticated tenants."""

    def __init__(
        self,
        company: Company,
        planner: Planner,
        journal: Journal,
        *,
        max_prompt_bytes: int,
        request_timeout_s: float,
    ) -> None:
        self._company = company
        self._planner = planner
        self._journal = journal
        self._max_prompt_bytes = max_prompt_bytes
        self._request_timeout_s = request_timeout_s

    def models(self) -> list[ModelCard]:
        """List the models a caller may name."""
        return self._company.stage.cards()

    def model(self, name: str) -> ModelCard:
        """Return one model; NotFound lists the known ones."""
        known = self._company.stage.check_model(name)
        return next(card for card in self.models() if card.id == known)

    def authenticate(self, authorization: str | None) -> str:
        """Return the tenant behind an `Authorization` value."""
        return self._company.tenants.authenticate(authorization)

    def count_failure(self, error: UnderstudyError) -> None:
        """Count a request that failed."""
        self._company.metrics.failures.labels(error.reason).inc()

    async def generate(
        self,
        request: Request,
        *,
        tenant: str,
        request_id: str,
        deadline: Deadline,
        parent: Context | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Yield `Started`, deltas and `Finished`; raises the named error of a refused request."""
        with self._serving(request_id, parent) as span:
            check_request(request, self._max_prompt_bytes)
            self._company.stage.check_model(request.model)
            plan = await asyncio.to_thread(self._planner.plan, request)
            entry = await self._journal.open(tenant, request, request_id)
            if entry is None:
                self._company.metrics.unjournalled.inc()
            found = replay(entry.records) if entry else Replay(request, request_id)
            deadline = deadline.at_most(self._request_timeout_s)
            assignment = Assignment(request, plan, tenant, deadline, span)
            async with aclosing(self._events(assignment, found, entry, 0)) as events:
                async for event in events:
                    yield event

    async def resume(
        self,
        token: str,
        received_deltas: int,
        *,
        tenant: str,
        deadline: Deadline,
        parent: Context | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Continue an answer after the deltas its caller has.

        Raises NotFound for an unknown token, and Unavailable while the journal is away.
        """
        with self._serving("", parent) as span:
            entry = await self._journal.find(tenant, token)
            found = replay(entry.records)
            span.set_attribute(names.REQUEST_ID, found.request_id)
            is_other = found.num_lost > 0 and received_deltas > 0
            if is_other or received_deltas > len(found.deltas):
                raise NotFound(
                    f"The journal knows {len(found.deltas)} deltas of this answer, the caller has "
                    f"{received_deltas}; send the request again.",
                    {"field": "received_deltas", "request_id": found.request_id},
                )
            plan = await asyncio.to_thread(self._planner.plan, found.request)
            deadline = deadline.at_most(self._request_timeout_s)
            assignment = Assignment(found.request, plan, tenant, deadline, span)
            async with aclosing(self._events(assignment, found, entry, received_deltas)) as events:
                async for event in events:
                    yield event

    async def _events(
        self, assignment: Assignment, found: Replay, entry: Entry | None, num_received: int
    ) -> AsyncGenerator[Event, None]:
        token = entry.token if entry is not None and entry.is_live else ""
        yield Started(found.request_id, token, assignment.deadline.remaining_s)
        for delta in found.deltas[num_received:]:
            yield delta
        if found.finished is not None:
            yield found.finished
            return
        while found.finished is None:
            try:
                async with aclosing(self._answer(assignment, found, entry)) as events:
                    async for event in events:
                        yield event
                return
            except TakenOverError:
                assert entry is not None
            following = Following(entry, assignment.deadline)
            async with aclosing(following.events()) as news:
                async for event in news:
                    yield event
            found = following.found

    async def _answer(
        self, assignment: Assignment, found: Replay, entry: Entry | None
    ) -> AsyncGenerator[Event, None]:
        answering = Answering(self._company, assignment, found, entry)
        keeping = entry.kept() if entry is not None else nullcontext()
        async with keeping, aclosing(answering.events()) as events:
            async for event in events:
                yield event

    @contextmanager
    def _serving(self, request_id: str, parent: Context | None) -> Iterator[Span]:
        """Hold a place and the root span of a request, and count its failure."""
        span = tracer(__name__).start_span(
            names.ROUTER_GENERATE,
            context=parent,
            kind=SpanKind.SERVER,
            attributes={names.REQUEST_ID: request_id},
        )
        metrics = self._company.metrics
        try:
            with self._company.admission.requests.hold(), metrics.active.track_inprogress():
                yield span
        except UnderstudyError as error:
            self._fail(span, error)
            raise
        except Exception as error:  # what the interceptor is to gRPC, for both edges
            bug = Internal("internal error")
            self._fail(span, bug)
            log_bug(error, request_id, span)
            raise bug from error
        finally:
            span.end()

    def _fail(self, span: Span, error: UnderstudyError) -> None:
        self.count_failure(error)
        span.set_attribute(names.ERROR_TYPE, error.reason)
        span.set_status(Status(StatusCode.ERROR, error.reason))


def log_bug(error: Exception, request_id: str, span: Span = INVALID_SPAN) -> None:
    """Log what a caller is told as an internal error, so that both ids lead to it."""
    logger.error(
        "A request failed because of a bug; the caller sees INTERNAL.",
        exc_info=error,
        extra={
            "request_id": request_id or current_request_id(),
            "trace_id": format_trace_id(span.get_span_context().trace_id),
        },
    )
