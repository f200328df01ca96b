"""The routes of the OpenAI-compatible edge."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.router.answers import Started
from services.router.conductor import Conductor, log_bug
from services.router.http import bodies, shapes
from services.router.http.failures import TOO_LARGE, error_response
from services.router.http.streams import Events, EventStream, collect, while_present
from services.router.requests import Request
from understudy.errors import Internal, InvalidArgument, UnderstudyError
from understudy.rpc import Deadline, extract
from understudy.rpc.metadata import REQUEST_ID_KEY, accept_request_id
from understudy.serving import HealthState

Parse = Callable[[bodies.Body, str], Request]
IDEMPOTENCY_HEADER: Final = "idempotency-key"
CLIENT_CLOSED: Final = 499
DISCARD_FACTOR: Final = 8
"""Body limits up to which a body that is too large is read, so that its refusal arrives."""


class BodyTooLargeError(InvalidArgument):
    """The body has more bytes than the edge reads."""

    reason = "BODY_TOO_LARGE"


class Edge:
    """Serves OpenAI clients with one conductor."""

    def __init__(
        self,
        conductor: Conductor,
        health: HealthState,
        *,
        max_body_bytes: int,
        request_timeout_s: float,
    ) -> None:
        self._conductor = conductor
        self._health = health
        self._max_body_bytes = max_body_bytes
        self._request_timeout_s = request_timeout_s
        self._started_s = int(time.time())

    def app(self) -> Starlette:
        """Return the ASGI application."""
        return Starlette(
            routes=[
                Route("/health", self._check_health, methods=["GET"]),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/models/{model}", self._model, methods=["GET"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
            ],
            exception_handlers={
                BodyTooLargeError: _too_large,
                UnderstudyError: _refused,
                ClientDisconnect: _gone,
                Exception: self._broken,
            },
        )

    async def _check_health(self, _: HttpRequest) -> Response:
        is_ready = self._health.is_ready
        status = "ready" if is_ready else "unavailable"
        return JSONResponse({"status": status}, 200 if is_ready else 503)

    async def _models(self, http: HttpRequest) -> Response:
        self._tenant(http)
        body = shapes.models(self._conductor.models(), self._started_s)
        return JSONResponse(body, headers={REQUEST_ID_KEY: _request_id(http)})

    async def _model(self, http: HttpRequest) -> Response:
        self._tenant(http)
        card = self._conductor.model(http.path_params["model"])
        body = shapes.model(card, self._started_s)
        return JSONResponse(body, headers={REQUEST_ID_KEY: _request_id(http)})

    async def _chat(self, http: HttpRequest) -> Response:
        return await self._answer(http, "chat", bodies.chat_request)

    async def _complete(self, http: HttpRequest) -> Response:
        return await self._answer(http, "text", bodies.completion_request)

    async def _answer(self, http: HttpRequest, kind: shapes.Kind, parse: Parse) -> Response:
        tenant = self._tenant(http)
        body = bodies.parse_body(await self._read(http))
        request = parse(body, http.headers.get(IDEMPOTENCY_HEADER, ""))
        is_streamed, wants_usage = bodies.is_streamed(body), bodies.wants_usage(body)
        events = self._conductor.generate(
            request,
            tenant=tenant,
            request_id=_request_id(http),
            deadline=Deadline.after(self._request_timeout_s),
            parent=extract(dict(http.headers)),
        )
        shaper = shapes.Shaper(kind, _request_id(http), request.model or "auto", int(time.time()))
        if not is_streamed:
            return await _whole(http, events, shaper)
        # The status is decided by the first event that shows something, so that a refusal
        # before it still gets a status of its own.
        try:
            first = await while_present(http.receive, _first(events))
        except BaseException:
            await events.aclose()
            raise
        headers = {REQUEST_ID_KEY: shaper.request_id, "cache-control": "no-cache"}
        return EventStream(first, events, shaper, headers, wants_usage=wants_usage)

    def _tenant(self, http: HttpRequest) -> str:
        return self._conductor.authenticate(http.headers.get("authorization"))

    async def _broken(self, http: HttpRequest, error: Exception) -> Response:
        """Answer for a bug of the edge: its cause is logged and never sent."""
        told = Internal("internal error")
        self._conductor.count_failure(told)
        log_bug(error, _request_id(http))
        return error_response(told, _request_id(http))

    async def _read(self, http: HttpRequest) -> bytes:
        """Return the body; what is too large is read to its end within reason and thrown away.

        A client that is still sending would see a broken connection instead of the refusal.
        """
        data, size_bytes = bytearray(), 0
        async for part in http.stream():
            size_bytes += len(part)
            if size_bytes <= self._max_body_bytes:
                data += part
            if size_bytes > DISCARD_FACTOR * self._max_body_bytes:
                break
        if size_bytes > self._max_body_bytes:
            raise BodyTooLargeError(
                f"The body has more than {self._max_body_bytes} bytes.", {"field": "body"}
            )
        return bytes(data)


async def _whole(http: HttpRequest, events: Events, shaper: shapes.Shaper) -> Response:
    deltas, finished = await while_present(http.receive, collect(events))
    headers = {REQUEST_ID_KEY: shaper.request_id, **shapes.fact_headers(finished.decision)}
    return JSONResponse(shaper.whole(deltas, finished), headers=headers)


async def _first(events: Events) -> shapes.Shown:
    async for event in events:
        if not isinstance(event, Started):
            return event
    raise Internal("internal error")


def _request_id(http: HttpRequest) -> str:
    """The caller's id for this request, or one made on first use."""
    state = http.scope.setdefault("state", {})
    if REQUEST_ID_KEY not in state:
        state[REQUEST_ID_KEY] = accept_request_id(http.headers.get(REQUEST_ID_KEY))
    return str(state[REQUEST_ID_KEY])


async def _refused(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, UnderstudyError)
    return error_response(error, _request_id(http))


async def _too_large(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, BodyTooLargeError)
    return error_response(error, _request_id(http), TOO_LARGE)


async def _gone(_: HttpRequest, __: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED)
