"""An attempt on an external pool: asked, heard, and asked again while nothing was shown.

An endpoint is asked at most `MAX_TRIES` times for one attempt: a request that makes an engine fail
whenever it is asked must not keep the engine failing for as long as the patience.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from services.router.attempts import Job
from services.router.external.answer import EngineAnswer
from services.router.external.asking import gaps
from services.router.external.pool import ExternalPool
from services.router.external.port import (
    Endpoint,
    EngineMisfit,
    EngineRefused,
    EngineUnreached,
    Heard,
)
from services.router.holding import Holding
from services.router.requests import Request
from services.router.speaking import Piece
from services.router.transcripts import Transcript
from understudy.errors import (
    Aborted,
    DeadlineExceeded,
    PromptTooLong,
    ResourceExhausted,
    Unavailable,
    UnderstudyError,
)

MAX_TRIES: Final = 3
"""Of one attempt at one endpoint; tries that did not reach it are not counted."""
_FAILURES: Final = (Unavailable, ResourceExhausted, EngineRefused, EngineMisfit, PromptTooLong)
"""What an engine fails a request with."""
_FIRST_BACKOFF_S: Final = 0.2
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
        self._num_tries: Counter[str] = Counter()
        self._losing_since_s: float | None = None
        self.transcript = Transcript([], time.monotonic())
        self.transcript.gaps.update(gaps(request, job.plan, job.adapter))

    async def complete(self) -> str:
        """Return the whole answer; nothing of it was shown, so a broken try is made again.

        Raises what `pieces` raises, save Aborted.
        """
        backoff_s = _FIRST_BACKOFF_S
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
        backoff_s = _FIRST_BACKOFF_S
        while True:
            endpoint, answer, has_shown = await self._endpoint(), EngineAnswer(), False
            try:
                async with aclosing(self._hear(endpoint, answer)) as stream:
                    async for heard in stream:
                        if heard.text:
                            has_shown = True
                            yield Piece(heard.text)
            except _FAILURES as error:
                if has_shown:
                    raise self._broken(error) from error
                if isinstance(error, Unavailable):
                    backoff_s = await self._lose(endpoint, error, backoff_s)
                elif isinstance(error, ResourceExhausted):
                    self._refuse(endpoint, error)
                else:
                    raise
            else:
                self._end(answer)
                if answer.calls_text:  # nobody asked for a call: it is shown as what it is
                    yield Piece(answer.calls_text)
                return

    async def _hear(self, endpoint: Endpoint, answer: EngineAnswer) -> AsyncGenerator[Heard, None]:
        is_again = self._num_tries[endpoint.address] > 0
        self._num_tries[endpoint.address] += 1
        try:
            async with aclosing(endpoint.ask(self._question, is_again=is_again)) as stream:
                while (heard := await self._next(stream)) is not None:
                    if heard.text or heard.calls:
                        self.transcript.note_token()
                    answer.add(heard)
                    yield heard
        except UnderstudyError as error:
            if isinstance(error, EngineUnreached):
                self._num_tries[endpoint.address] -= 1
            answer.lose(self.transcript, len(self._job.plan.tokens))
            raise

    async def _next(self, stream: AsyncGenerator[Heard, None]) -> Heard | None:
        try:
            async with asyncio.timeout(self._job.deadline.remaining_s):
                return await anext(stream, None)
        except TimeoutError as error:
            raise DeadlineExceeded(
                "The deadline passed before the answer was complete; allow more time."
            ) from error

    def _end(self, answer: EngineAnswer) -> str:
        answer.settle(self.transcript, len(self._job.plan.tokens))
        self._pool.note_margins(has_all="margins" not in self.transcript.gaps)
        return answer.text

    async def _endpoint(self) -> Endpoint:
        """Wait for an endpoint that can be asked; ResourceExhausted when all are at their limit."""
        self._job.deadline.check()
        endpoint = self._pick() or await self._hold()
        if endpoint.busy_s > 0:
            raise ResourceExhausted(
                f"No engine of the pool {self._pool.name!r} has room.",
                {"pool": self._pool.name},
                retry_after_s=endpoint.busy_s,
            )
        self.transcript.model = self._pool.info.model
        self.transcript.worker = endpoint.address
        return endpoint

    def _pick(self) -> Endpoint | None:
        spent = {address for address, tries in self._num_tries.items() if tries >= MAX_TRIES}
        return self._pool.pick(self._failed, spent)

    async def _hold(self) -> Endpoint:
        """Wait for an endpoint of a pool that has none."""
        with self._holding.hold(self._pool.name, self._job.patience) as hold:
            try:
                return await hold.until(self._pick, self._job.deadline)
            finally:
                self.transcript.held_s += hold.waited_s

    def _refuse(self, endpoint: Endpoint, error: ResourceExhausted) -> None:
        """Go on to an endpoint that has room; raises the refusal when there is none."""
        self._failed.add(endpoint.address)
        other = self._pick()
        if other is None or other.busy_s > 0:
            raise error
        self.transcript.begin_again()

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
        self._failed.add(endpoint.address)
        if self._num_tries[endpoint.address] >= MAX_TRIES and self._pick() is None:
            raise Unavailable(
                f"The pool {self._pool.name!r} failed this request {MAX_TRIES} times: "
                f"{error.message}",
                {"pool": self._pool.name},
            ) from error
        self.transcript.num_replacements += 1
        self.transcript.begin_again()
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

    def _broken(self, error: UnderstudyError) -> Aborted:
        return Aborted(
            f"The external engine of the pool {self._pool.name!r} broke off after a part of the "
            f"answer was shown, and cannot continue it: {error.message} Send the request again.",
            {"pool": self._pool.name},
        )
