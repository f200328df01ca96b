"""One model's try at a request, wherever its workers die: placed, followed, placed again.

A sequence whose worker fails continues on another (or the same one, restarted) from the prompt
plus the tokens it already has, so a lost worker costs time, never the request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from services.router.holding import Holding, Patience
from services.router.plans import Plan
from services.router.pools import Ended, Pool, SequenceStream, Submission, Tokens, Worker
from services.router.requests import Priority, Sampling
from services.router.transcripts import Transcript
from understudy.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    PromptTooLong,
    ResourceExhausted,
    Unavailable,
)
from understudy.rpc import Deadline

_MIN_BACKOFF_S: Final = 0.05
_MAX_BACKOFF_S: Final = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """What an attempt works on."""

    plan: Plan
    sampling: Sampling
    adapter: str
    tenant: str
    kv_root: Callable[[bytes], bytes]
    """Maps a model's digest to the tenant's root."""
    deadline: Deadline
    patience: Patience
    """Longest wait for a worker, and for progress after a loss, before the attempt fails."""
    traceparent: str
    priority: Priority


class AttemptRun:
    """Runs one attempt on a pool; iterate `stream`, then read `transcript`."""

    def __init__(
        self, pool: Pool, holding: Holding, job: Job, committed: tuple[int, ...] = ()
    ) -> None:
        self._pool = pool
        self._holding = holding
        self._job = job
        self._failed: set[str] = set()
        self._refusal: ResourceExhausted | None = None
        self._unread_tokens = 0
        self._losing_since_s: float | None = None
        """When the first of the losses came that nothing was gained since."""
        self.transcript = Transcript(list(committed), time.monotonic())

    async def complete(self) -> None:
        """Run to the end; raises what `stream` raises."""
        async with aclosing(self.stream()) as stream:
            async for _ in stream:
                pass

    async def stream(self) -> AsyncGenerator[Tokens, None]:
        """Yield new tokens to the end.

        Raises Unavailable when no worker could be had within the patience, ResourceExhausted when
        the pool sleeps or every worker is full (once the sequence had begun: and stays so for the
        patience), DeadlineExceeded, and what a worker refuses a sequence for.
        """
        backoff_s = _MIN_BACKOFF_S
        while True:
            worker = await self._worker()
            sequence = worker.submit(self._submission(worker))
            num_before = len(self.transcript.ids)
            try:
                async for tokens in self._follow(sequence):
                    yield tokens
                return
            except ResourceExhausted as error:
                self._failed.add(worker.address)
                self._refusal = error
            except (Aborted, Unavailable) as error:
                backoff_s = self._lose(worker, error, num_before, backoff_s)
                await asyncio.sleep(min(backoff_s, self._job.deadline.remaining_s))
            finally:
                sequence.cancel()

    async def _follow(self, sequence: SequenceStream) -> AsyncGenerator[Tokens, None]:
        events = aiter(sequence)
        while True:
            try:
                async with asyncio.timeout(self._job.deadline.remaining_s):
                    event = await anext(events)
            except TimeoutError as error:
                raise DeadlineExceeded(
                    "The deadline passed before the answer was complete; allow more time."
                ) from error
            if isinstance(event, Ended):
                self._end(event)
                return
            self.transcript.add(event)
            yield event

    def _end(self, event: Ended) -> None:
        transcript = self.transcript
        transcript.is_ended, transcript.finish_reason = True, event.finish_reason
        transcript.computed_positions += event.computed_positions
        if not transcript.num_replacements:
            transcript.cached_tokens = event.cached_tokens

    async def _worker(self) -> Worker:
        """Wait for a worker that can take the sequence."""
        while True:
            self._job.deadline.check()
            worker = self._pick() or await self._hold()
            if worker.address in self._failed and self._refusal is not None:
                await self._wait_for_room(self._refusal)
                continue
            self._note(worker)
            return worker

    async def _hold(self) -> Worker:
        """Wait for a worker of a pool that has none."""
        with self._holding.hold(self._pool.name, self._job.patience) as hold:
            try:
                return await hold.until(self._pick, self._job.deadline)
            finally:
                self.transcript.held_s += hold.waited_s

    def _pick(self) -> Worker | None:
        info = self._pool.info
        root = self._job.kv_root(info.digest) if info is not None else b""
        tokens = self._job.plan.tokens
        pick = self._pool.pick(tokens, root, self._job.adapter, self._failed)
        if pick is None:
            return None
        self._unread_tokens = pick.unread_tokens
        return pick.worker

    async def _wait_for_room(self, refusal: ResourceExhausted) -> None:
        """Refuse a sequence when every worker is full; one that had begun waits and tries again."""
        transcript = self.transcript
        has_begun = bool(transcript.ids) or transcript.num_replacements > 0
        if not has_begun or self._has_lost_patience():
            raise refusal
        pause_s = min(refusal.retry_after_s, _MAX_BACKOFF_S, self._job.deadline.remaining_s)
        await asyncio.sleep(pause_s)
        self._failed.clear()
        self._refusal = None

    def _has_lost_patience(self) -> bool:
        """Start the clock at the first call since the last progress; tell when time is up."""
        now_s = time.monotonic()
        if self._losing_since_s is None:
            self._losing_since_s = now_s
        return now_s - self._losing_since_s > self._job.patience.worker_s

    def _note(self, worker: Worker) -> None:
        info, adapter = worker.info, self._job.adapter
        assert info is not None
        if adapter and adapter not in info.adapters:
            raise FailedPrecondition(
                f"The worker {worker.address} has no adapter {adapter!r}; give it to every worker "
                f"of the pool {self._pool.name!r}.",
                {"pool": self._pool.name, "adapter": adapter},
            )
        room = info.max_context_tokens - len(self._job.plan.tokens)
        if room < 1:
            raise PromptTooLong(
                f"The prompt has {len(self._job.plan.tokens)} tokens; the pool "
                f"{self._pool.name!r} takes {info.max_context_tokens - 1}.",
                {"field": "messages"},
            )
        self.transcript.model = info.model
        self.transcript.worker = worker.address

    def _submission(self, worker: Worker) -> Submission:
        job, info = self._job, worker.info
        assert info is not None
        room = info.max_context_tokens - len(job.plan.tokens)
        return Submission(
            tokens=(*job.plan.tokens, *self.transcript.ids),
            num_committed=len(self.transcript.ids),
            sampling=job.sampling,
            max_tokens=min(job.plan.max_tokens, room),
            grammar=job.plan.grammar,
            adapter=job.adapter,
            time_left_s=job.deadline.remaining_s,
            kv_root=job.kv_root(info.digest),
            tenant=job.tenant,
            traceparent=job.traceparent,
            priority=job.priority,
            unread_tokens=self._unread_tokens + len(self.transcript.ids),
        )

    def _lose(
        self, worker: Worker, error: Aborted | Unavailable, num_before: int, backoff_s: float
    ) -> float:
        """A worker lost the sequence: it goes elsewhere; return how long to wait before that.

        Raises Unavailable once nothing was gained since the first loss for as long as the patience.
        """
        transcript = self.transcript
        has_progress = len(transcript.ids) > num_before
        if has_progress:
            self._losing_since_s = None
        if self._has_lost_patience():
            raise Unavailable(
                f"The pool {self._pool.name!r} lost the sequence again and again for "
                f"{self._job.patience.worker_s:g} s: {error.message}",
                {"pool": self._pool.name},
            ) from error
        transcript.num_replacements += 1
        self._failed = {worker.address}
        self._refusal = None
        logger.warning(
            "A sequence is placed again after its worker failed.",
            extra={
                "pool": self._pool.name,
                "worker": worker.address,
                "reason": error.reason,
                "tokens": len(transcript.ids),
            },
        )
        return _MIN_BACKOFF_S if has_progress else min(2 * backoff_s, _MAX_BACKOFF_S)
