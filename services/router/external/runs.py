"""An attempt on an external pool: asked, heard, and asked again while nothing was shown."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from services.router.attempts import Job
from services.router.external.answer import EngineAnswer
from services.router.external.asking import gaps
from services.router.external.pool import ExternalPool
from services.router.external.port import Endpoint, Heard
from services.router.holding import Holding
from services.router.requests import Request
from services.router.speaking import Piece
from services.router.transcripts import Transcript
from understudy.errors import Aborted, DeadlineExceeded, ResourceExhausted, Unavailable

_POLL_S: Final = 0.05
_MAX_BACKOFF_S: Final = 1.0

logger = logging.getLogger(__name__)


class ExternalRun:
    """Runs one attempt; satisfies `speaking.Speaker`."""

    def __init__(self, pool: ExternalPool, holding: Holding, job: Job, request: Request) -> None:
        self._pool = pool
        self._holding = holding
        self._job = job
        self._question = pool.asking.question(request, job.plan, job.traceparent)
        self._failed: set[str] = set()
        self._losing_since_s: float | None = None
        self.transcript = Transcript([], time.monotonic())
        self.transcript.gaps.update(gaps(request, job.plan, job.adapter))

    async def complete(self) -> str:
        """Return the whole answer; nothing of it was shown, so a broken try is made again.

        Raises what `pieces` raises, save Aborted.
        """
        backoff_s = _POLL_S
        while True:
            endpoint, answer = await self._endpoint(), EngineAnswer()
            try:
                async with aclosing(self._hear(endpoint, answer)) as stream:
                    async for _ in stream:
                        pass
            except Unavailable as error:
                backoff_s = await self._lose(endpoint, error, backoff_s)
            except ResourceExhausted as error:
                self._refuse(endpoint, error)
            else:
                return self._end(answer)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield text as it is heard.

        Raises Unavailable when no endpoint answered within the patience, ResourceExhausted when
        all are at their limit, Aborted when one broke after its text was yielded,
        DeadlineExceeded, and what an engine refuses a request for.
        """
        self.transcript.gaps.add("resume")
        backoff_s = _POLL_S
        while True:
            endpoint, answer, has_shown = await self._endpoint(), EngineAnswer(), False
            try:
                async with aclosing(self._hear(endpoint, answer)) as stream:
                    async for heard in stream:
                        if heard.text:
                            has_shown = True
                            yield Piece(heard.text)
            except Unavailable as error:
                if has_shown:
                    raise self._broken(error) from error
                backoff_s = await self._lose(endpoint, error, backoff_s)
            except ResourceExhausted as error:
                if has_shown:
                    raise self._broken(error) from error
                self._refuse(endpoint, error)
            else:
                self._end(answer)
                if answer.calls_text:  # nobody asked for a call: it is shown as what it is
                    yield Piece(answer.calls_text)
                return

    async def _hear(self, endpoint: Endpoint, answer: EngineAnswer) -> AsyncGenerator[Heard, None]:
        async with aclosing(endpoint.ask(self._question)) as stream:
            while True:
                try:
                    async with asyncio.timeout(self._job.deadline.remaining_s):
                        heard = await anext(stream, None)
                except TimeoutError as error:
                    raise DeadlineExceeded(
                        "The deadline passed before the answer was complete; allow more time."
                    ) from error
                if heard is None:
                    return
                is_output = bool(heard.text or heard.calls)
                if is_output and self.transcript.first_token_s is None:
                    self.transcript.first_token_s = time.monotonic()
                answer.add(heard)
                yield heard

    def _end(self, answer: EngineAnswer) -> str:
        answer.settle(self.transcript, len(self._job.plan.tokens))
        self._pool.note_margins(has_all="margins" not in self.transcript.gaps)
        return answer.text

    async def _endpoint(self) -> Endpoint:
        """Wait for an endpoint that can be asked; ResourceExhausted when all are at their limit."""
        self._job.deadline.check()
        endpoint = self._pool.pick(self._failed) or await self._hold()
        if endpoint.busy_s > 0:
            raise ResourceExhausted(
                f"Every engine of the pool {self._pool.name!r} is at its limit.",
                {"pool": self._pool.name},
                retry_after_s=endpoint.busy_s,
            )
        self.transcript.model = self._pool.info.model
        self.transcript.worker = endpoint.address
        return endpoint

    async def _hold(self) -> Endpoint:
        """Wait for an endpoint of a pool that has none."""
        deadline = self._job.deadline
        with self._holding.hold(self._pool.name, self._job.patience) as hold:
            try:
                while (endpoint := self._pool.pick(self._failed)) is None:
                    hold.check(deadline.remaining_s)
                    await asyncio.sleep(min(_POLL_S, deadline.remaining_s))
                    deadline.check()
                return endpoint
            finally:
                self.transcript.held_s += hold.waited_s

    def _refuse(self, endpoint: Endpoint, error: ResourceExhausted) -> None:
        """Go on to an endpoint that has room; raises the refusal when there is none."""
        self._failed.add(endpoint.address)
        other = self._pool.pick(self._failed)
        if other is None or other.address in self._failed:
            raise error

    async def _lose(self, endpoint: Endpoint, error: Unavailable, backoff_s: float) -> float:
        """Wait before the next try; return how long the wait after that is."""
        now_s, patience_s = time.monotonic(), self._job.patience.worker_s
        if self._losing_since_s is None:
            self._losing_since_s = now_s
        if now_s - self._losing_since_s > patience_s:
            raise Unavailable(
                f"The pool {self._pool.name!r} failed again and again for {patience_s:g} s: "
                f"{error.message}",
                {"pool": self._pool.name},
            ) from error
        self.transcript.num_replacements += 1
        self.transcript.first_token_s = None
        self._failed.add(endpoint.address)
        logger.warning(
            "An external engine failed; its request is made again.",
            extra={
                "pool": self._pool.name,
                "worker": endpoint.address,
                "reason": error.reason,
                "status": error.metadata.get("status", ""),
            },
        )
        await asyncio.sleep(min(backoff_s, self._job.deadline.remaining_s))
        return min(2 * backoff_s, _MAX_BACKOFF_S)

    def _broken(self, error: Unavailable | ResourceExhausted) -> Aborted:
        return Aborted(
            f"The external engine of the pool {self._pool.name!r} broke off after a part of the "
            f"answer was shown, and cannot continue it: {error.message} Send the request again.",
            {"pool": self._pool.name},
        )
