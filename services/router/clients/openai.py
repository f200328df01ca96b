"""One URL of an OpenAI-compatible engine; satisfies `external.port.Endpoint`.

Every request is one HTTP exchange that is never repeated here. `watch` asks for the engine's
models now and then: an endpoint that does not answer, or does not serve the pool's model, gets no
requests. With each such look a new key and new authorities are taken up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import httpx2
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, use_span

from services.router.clients.connections import Authorities, Connections
from services.router.clients.responses import read_body, read_out
from services.router.external.breaker import Breaker
from services.router.external.failures import failure
from services.router.external.hearing import END, hear
from services.router.external.models import MAX_MODELS_BYTES, read_context
from services.router.external.pool import PROVIDER
from services.router.external.port import (
    EngineMisfit,
    EngineUnreached,
    Heard,
    Question,
    State,
)
from services.router.external.sse import EventReader
from understudy.errors import ResourceExhausted, Unavailable, UnderstudyError
from understudy.rpc import extract, traceparent
from understudy.serving import Followed
from understudy.telemetry import names, tracer

LOOK_INTERVAL_S: Final = 5.0
AWAY_INTERVAL_S: Final = 0.5
LOOK_TIMEOUT_S: Final = 5.0
MAX_MISSED_LOOKS: Final = 2
"""Looks in a row that may fail while an engine is merely slow."""
HEARD_S: Final = 2 * LOOK_INTERVAL_S
"""How long what an engine said counts as a sign of life."""
MAX_ERROR_BYTES: Final = 64 * 1024
MAX_CAUSE_CHARS: Final = 200
EVENT_STREAM: Final = "text/event-stream"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """How the engines of one pool are reached."""

    pool: str
    model: str
    key: Followed[str] | None
    """The key to send; None sends none."""
    authorities: Authorities | None
    """What engines' certificates are checked against; None: the system's."""
    connect_timeout_s: float
    idle_timeout_s: float


class EndpointClient:
    """One engine; run `watch` beside it."""

    def __init__(
        self,
        url: str,
        settings: EndpointSettings,
        count: Callable[[str], None],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Dial nothing yet; `count` takes the outcome of every request."""
        self.address = url
        self.max_context_tokens = 0
        self.num_active = 0
        self._settings = settings
        self._count = count
        self._clock_s = clock_s
        self._breaker = Breaker(clock_s)
        self._is_seen = False
        self._told = ""
        self._heard_s = clock_s() - HEARD_S
        self._key = ""
        self._busy_until_s = clock_s()
        self._connections = Connections(
            url,
            httpx2.Timeout(settings.idle_timeout_s, connect=settings.connect_timeout_s),
            settings.authorities,
        )

    @property
    def state(self) -> State:
        """Whether it takes requests, rests after failures, or cannot be reached."""
        if not self._is_seen:
            return "away"
        is_tried = self._breaker.is_trying and self.num_active > 0
        return "resting" if self._breaker.is_resting or is_tried else "available"

    @property
    def busy_s(self) -> float:
        """Seconds for which the engine asked to be left alone."""
        return max(self._busy_until_s - self._clock_s(), 0.0)

    async def ask(
        self, question: Question, *, is_again: bool = False
    ) -> AsyncGenerator[Heard, None]:
        """Ask once; see `services.router.external`."""
        self.num_active += 1
        span = self._span(question)
        outcome = "left"
        try:
            async with self._sent(question, span) as response:
                async for heard in self._events(response):
                    yield heard
            outcome = "answered"
        except UnderstudyError as error:
            outcome = self._learn(error, is_again=is_again)
            span.set_attribute(names.ERROR_TYPE, error.reason)
            span.set_status(Status(StatusCode.ERROR, error.reason))
            raise
        finally:
            self.num_active -= 1
            if outcome == "answered":
                self._breaker.succeed()
            self._count(outcome)
            span.end()

    async def watch(self) -> None:
        """Keep the state fresh until cancelled, then close every connection."""
        num_missed = 0
        try:
            while True:
                try:
                    await self._look()
                except EngineMisfit as error:
                    self._note(error)
                except Unavailable as error:
                    num_missed += 1
                    if num_missed >= MAX_MISSED_LOOKS and not self._has_been_heard():
                        self._note(error)
                else:
                    num_missed = 0
                    self._note(None)
                await asyncio.sleep(LOOK_INTERVAL_S if self._is_seen else AWAY_INTERVAL_S)
        finally:
            self._is_seen = False
            await self._connections.aclose()

    def _has_been_heard(self) -> bool:
        """Whether the engine spoke of late: one under load may be slow to list its models."""
        return self._clock_s() - self._heard_s < HEARD_S

    def _note(self, problem: UnderstudyError | None) -> None:
        """Take requests or not from here on; log what changed, once."""
        told, self._told = self._told, problem.message if problem else ""
        self._is_seen = problem is None
        facts = {"pool": self._settings.pool, "worker": self.address}
        if problem is not None and problem.message != told:
            level = logging.ERROR if isinstance(problem, EngineMisfit) else logging.WARNING
            cause = {"cause": problem.message}
            logger.log(level, "An external engine gets no requests.", extra=facts | cause)
        elif problem is None and told:
            logger.info("An external engine gets requests again.", extra=facts)

    async def _look(self) -> None:
        """Look whether the engine serves the model; raises EngineMisfit or Unavailable."""
        if self._settings.key is not None:
            self._key = await asyncio.to_thread(self._settings.key.current)
        await self._connections.follow()
        try:
            async with (
                asyncio.timeout(LOOK_TIMEOUT_S),
                self._connections.stream("GET", "models", self._headers()) as response,
            ):
                data = await read_body(response, MAX_MODELS_BYTES)
        except (httpx2.HTTPError, TimeoutError) as error:
            cause = f"{type(error).__name__}: {str(error)[:MAX_CAUSE_CHARS]}"
            raise Unavailable(f"It cannot be reached ({cause}).") from error
        status = response.status_code
        if status in (404, 405):
            return  # a gateway without this list; requests will tell
        if status in (401, 403):
            raise failure(status, {}, b"", self._settings.pool)
        if status != 200:
            raise Unavailable(f"Its list of models fails (HTTP {status}).")
        self.max_context_tokens = read_context(data, self._settings.model)

    @asynccontextmanager
    async def _sent(self, question: Question, span: Span) -> AsyncIterator[httpx2.Response]:
        """Send the request; yields a response that is a stream of events."""
        with use_span(span, end_on_exit=False):
            parent = traceparent() or question.traceparent
        headers = {**self._headers(), "accept": EVENT_STREAM}
        if parent:
            headers["traceparent"] = parent
        try:
            async with self._connections.stream(
                "POST", question.path, headers, question.body
            ) as response:
                span.set_attribute(names.HTTP_STATUS, response.status_code)
                if response.status_code != 200:
                    data = await read_body(response, MAX_ERROR_BYTES)
                    found = {name.lower(): value for name, value in response.headers.items()}
                    raise failure(response.status_code, found, data, self._settings.pool)
                if not response.headers.get("content-type", "").startswith(EVENT_STREAM):
                    raise Unavailable("The engine answered with what is no stream of events.")
                yield response
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise EngineUnreached(
                f"No connection to the engine could be made ({type(error).__name__}).",
                {"outcome": "silent" if isinstance(error, httpx2.TimeoutException) else "broken"},
            ) from error
        except httpx2.TimeoutException as error:
            raise Unavailable(
                f"The engine said nothing for too long ({type(error).__name__}).",
                {"outcome": "silent"},
            ) from error
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise Unavailable(
                f"The connection to the engine failed ({type(error).__name__}).",
                {"outcome": "broken"},
            ) from error

    async def _events(self, response: httpx2.Response) -> AsyncGenerator[Heard, None]:
        reader, has_finished = EventReader(), False
        chunks = response.aiter_raw()
        async for chunk in chunks:
            for data in reader.push(chunk):
                if data == END:
                    if has_finished:
                        await read_out(chunks)
                        return
                    raise Unavailable("The engine ended its stream without saying why it finished.")
                heard = hear(data, self._settings.pool)
                self._heard_s = self._clock_s()
                self._breaker.hear()
                has_finished |= bool(heard.finish)
                yield heard
        if not has_finished:
            raise Unavailable(
                "The engine's stream ended before the answer did.", {"outcome": "broken"}
            )

    def _learn(self, error: UnderstudyError, *, is_again: bool) -> str:
        """Draw what follows for later requests; return the outcome that is counted.

        However often one request fails, it is one failure: it may be what makes the engine fail.
        """
        if isinstance(error, ResourceExhausted):
            self._busy_until_s = self._clock_s() + error.retry_after_s
            return "limited"
        if isinstance(error, Unavailable):
            if not is_again:
                self._breaker.fail()
            return error.metadata.get("outcome", "failed")
        if isinstance(error, EngineMisfit):
            if not is_again:
                self._breaker.fail()
            logger.error(
                "An external engine refuses this router.",
                extra={
                    "pool": self._settings.pool,
                    "worker": self.address,
                    "status": error.metadata.get("status", ""),
                },
            )
        return "refused"

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._key}"} if self._key else {}

    def _span(self, question: Question) -> Span:
        url = httpx2.URL(self.address)
        is_chat = question.path == "chat/completions"
        return tracer(__name__).start_span(
            names.ROUTER_EXTERNAL,
            context=extract({"traceparent": question.traceparent}),
            kind=SpanKind.CLIENT,
            attributes={
                names.POOL: self._settings.pool,
                names.OPERATION: "chat" if is_chat else "text_completion",
                names.PROVIDER: PROVIDER,
                names.SERVER_ADDRESS: url.host,
                names.SERVER_PORT: url.port or (443 if url.scheme == "https" else 80),
            },
        )
