"""One request from its plan to its last event: SLM first, judged, escalated where it must be.

Nothing is shown before it can no longer be taken back, and everything shown is in the journal
first. Tool calls are shown whole; text of the pool whose answer stands is streamed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from typing import Final

from opentelemetry.trace import format_trace_id

from services.router import records
from services.router.answers import Attempt, Delta, Event, Finished, FinishReason, Reason
from services.router.external.port import EngineMisfit, EngineRefused
from services.router.holding import RETURN_S
from services.router.journal import Entry
from services.router.policy import LLM, SLM, Path, choose_path, decide, judge
from services.router.records import Replay
from services.router.tries import Assignment, Company, Try, begin
from services.router.verifiers import tool_calls, verify
from understudy.errors import Aborted, PromptTooLong, ResourceExhausted, Unavailable
from understudy.telemetry import exemplar, names
from understudy.workloads import Verdict

_UNFIT: Final = (Unavailable, ResourceExhausted, PromptTooLong, EngineRefused, EngineMisfit)
"""What the SLM may fail a request with that the LLM then answers."""

logger = logging.getLogger(__name__)


class Answering:
    """One request; iterate `events` once."""

    def __init__(
        self, company: Company, assignment: Assignment, replay: Replay, entry: Entry | None
    ) -> None:
        """Take how far the answer had come; `entry` None means that resume is off."""
        self._company = company
        self._assignment = assignment
        self._request = assignment.request
        self._plan = assignment.plan
        self._replay = replay
        self._entry = entry
        self._started_s = time.monotonic()
        self._calibrator = company.stage.calibrator(assignment.plan)
        self._attempts: list[Attempt] = [replay.trial] if replay.trial else []
        self._num_deltas = len(replay.deltas)

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield the deltas that are not in the journal yet, and the end."""
        path = self._replay.path or self._choose()
        await self._check_continues(path)
        if path.reason == "slm_unavailable" and self._replay.trial is None:
            self._company.admission.escalations.spend()
        async with aclosing(self._trial() if path.is_trial else self._stand(path)) as stream:
            async for event in stream:
                yield event

    def _choose(self) -> Path:
        stage = self._company.stage
        if self._replay.trial_reason is not None:
            return Path(LLM, self._replay.trial_reason)
        return choose_path(
            stage.check_model(self._request.model),
            self._calibrator,
            is_greedy=self._request.sampling.temperature == 0.0,
            is_slm_available=stage.is_slm_available,
        )

    async def _check_continues(self, path: Path) -> None:
        """Raise Aborted where a part was shown that nobody can continue: it came from an engine."""
        shown = self._replay.deltas
        is_native = self._company.stage.can_continue(path.pool)
        has_tokens = path.is_trial or self._plan.is_held or bool(self._replay.token_ids)
        if not shown or (is_native and has_tokens):
            return
        await self._journal(records.lost_record())
        raise Aborted(
            f"A part of the answer was shown, and the external engine of the pool {path.pool!r} "
            "cannot continue it; send the request again.",
            {"pool": path.pool},
        )

    async def _trial(self) -> AsyncGenerator[Event, None]:
        """Let the SLM try with its answer held; show it when it stands, else escalate."""
        reason: Reason
        text = ""
        try:
            text, reason = await self._try_slm()
        except _UNFIT:
            reason = "slm_unavailable"
        if reason == "slm_accepted":
            async for event in self._whole(Path(SLM, reason), text, "stop"):
                yield event
            return
        if self._attempts:
            await self._journal(records.attempt_record(self._attempts[-1], reason))
        self._company.admission.escalations.spend()
        async with aclosing(self._stand(Path(LLM, reason))) as stream:
            async for event in stream:
                yield event

    async def _try_slm(self) -> tuple[str, Reason]:
        """Run the SLM's attempt; one that was lost midway still goes into the decision."""
        calibrator = self._calibrator
        assert calibrator is not None
        assert calibrator.threshold is not None
        with begin(self._company, self._assignment, SLM, may_wake=False) as attempt:
            try:
                text = await attempt.speaker.complete()
            except _UNFIT:
                if attempt.speaker.transcript.has_begun:
                    self._attempts.append(attempt.facts((), None))
                raise
            transcript = attempt.speaker.transcript
            verdicts = (*transcript.remarks, *verify(self._plan, self._request, text))
            confidence = None
            if "margins" not in transcript.gaps:
                confidence = calibrator.confidence(transcript.evidence())
            self._attempts.append(attempt.facts(verdicts, confidence))
        if confidence is None:
            return text, "no_calibrator"
        return text, judge(confidence, calibrator.threshold, verdicts)

    async def _stand(self, path: Path) -> AsyncGenerator[Event, None]:
        """Let a pool answer whose answer stands whatever it is."""
        with ExitStack() as stack:
            if path.pool == LLM:
                stack.enter_context(self._company.admission.llm_attempts.hold())
            if path.reason == "slm_unavailable" and not self._company.stage.is_slm_available:
                self._company.holding.want(SLM, RETURN_S)
            committed = self._replay.token_ids
            attempt = stack.enter_context(
                begin(self._company, self._assignment, path.pool, committed)
            )
            shown = self._show_held if self._plan.is_held else self._show_stream
            async with aclosing(shown(path, attempt)) as events:
                async for event in events:
                    yield event

    async def _show_held(self, path: Path, attempt: Try) -> AsyncGenerator[Event, None]:
        text = await attempt.speaker.complete()
        self._conclude(path, attempt, text)
        async for event in self._whole(path, text, attempt.speaker.transcript.finish_reason):
            yield event

    async def _show_stream(self, path: Path, attempt: Try) -> AsyncGenerator[Event, None]:
        """Show text as it is decoded, each piece journalled before it is shown."""
        if self._replay.path is None:
            await self._journal(records.path_record(path))
        text = "".join(delta.text for delta in self._replay.deltas)
        unshown: list[int] = []
        try:
            async with aclosing(attempt.speaker.pieces()) as pieces:
                async for piece in pieces:
                    unshown.extend(piece.ids)
                    if piece.text:
                        text += piece.text
                        delta = Delta(self._num_deltas, piece.text)
                        yield await self._commit(path, delta, unshown)
                        unshown = []
        except Aborted:
            await self._journal(records.lost_record())
            raise
        self._conclude(path, attempt, text)
        yield await self._finish(path, attempt.speaker.transcript.finish_reason)

    def _conclude(self, path: Path, attempt: Try, text: str) -> None:
        """Verify an answer that stands, so that its decision tells what it is worth."""
        transcript = attempt.speaker.transcript
        verdicts = (*transcript.remarks, *verify(self._plan, self._request, text))
        is_ours = transcript.reported is None
        if is_ours and transcript.finish_reason == "stop" and _is_refused_schema(verdicts):
            self._company.metrics.disagreements.labels(path.pool).inc()
        confidence = None
        is_judgeable = not self._replay.token_ids and "margins" not in transcript.gaps
        if path.pool == SLM and self._calibrator is not None and is_judgeable:
            confidence = self._calibrator.confidence(transcript.evidence())
        self._attempts.append(attempt.facts(verdicts, confidence))

    async def _whole(
        self, path: Path, text: str, finish: FinishReason
    ) -> AsyncGenerator[Event, None]:
        """Show a held answer in one piece, unless an earlier stream already did."""
        calls = tool_calls(text) if self._plan.is_held and finish == "stop" else ()
        if (text or calls) and not self._replay.deltas:
            yield await self._commit(
                path, Delta(self._num_deltas, "" if calls else text, calls), []
            )
        yield await self._finish(path, "tool_calls" if calls else finish)

    async def _commit(self, path: Path, delta: Delta, token_ids: list[int]) -> Delta:
        await self._journal(records.delta_record(delta, token_ids))
        if self._num_deltas == 0:
            elapsed_s = time.monotonic() - self._started_s
            self._company.metrics.first_delta_s.labels(path.pool).observe(
                elapsed_s, exemplar(self._assignment.span.get_span_context())
            )
        self._num_deltas += 1
        return delta

    async def _finish(self, path: Path, finish_reason: FinishReason) -> Finished:
        assert path.reason is not None
        context = self._assignment.span.get_span_context()
        calibrator = self._calibrator
        decision = decide(
            path.reason,
            self._attempts,
            workload=self._plan.workload_name,
            threshold=calibrator.threshold if calibrator else None,
            trace_id=format_trace_id(context.trace_id) if context.trace_flags.sampled else "",
            is_resumable=self._entry is not None
            and self._entry.is_live
            and "resume" not in self._attempts[-1].gaps,
        )
        finished = Finished(finish_reason, self._attempts[-1].usage, decision)
        await self._journal(records.finished_record(finished))
        elapsed_s = time.monotonic() - self._started_s
        self._company.metrics.count_answer(decision, elapsed_s, exemplar(context))
        self._describe(finished)
        logger.info(
            "Answered.",
            extra={
                "request_id": self._replay.request_id,
                "tenant": self._assignment.tenant,
                "pool": decision.pool,
                "reason": decision.reason,
                "cost": decision.cost,
            },
        )
        return finished

    def _describe(self, finished: Finished) -> None:
        decision = finished.decision
        self._assignment.span.set_attributes(
            {
                names.POOL: decision.pool,
                names.REASON: decision.reason,
                names.COST: decision.cost,
                names.ESCALATED: len(decision.attempts) > 1,
            }
        )
        if decision.workload:
            self._assignment.span.set_attribute(names.WORKLOAD, decision.workload)
        if decision.confidence is not None:
            self._assignment.span.set_attribute(names.CONFIDENCE, decision.confidence)
        if decision.threshold is not None:
            self._assignment.span.set_attribute(names.THRESHOLD, decision.threshold)

    async def _journal(self, record: dict[str, object]) -> None:
        if self._entry is not None:
            await self._entry.append(record)


def _is_refused_schema(verdicts: tuple[Verdict, ...]) -> bool:
    return any(v.verifier == "json_schema" and not v.passed for v in verdicts)
