"""Answers over HTTP that end with their caller: who leaves cancels the attempt at its worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.router.answers import Delta, Event, Finished, Started
from services.router.http import shapes
from services.router.http.failures import error_body
from understudy.errors import Cancelled, Internal, UnderstudyError

Events = AsyncGenerator[Event, None]
T = TypeVar("T")


async def while_present(receive: Receive, work: Awaitable[T]) -> T:
    """Return the result of work, or cancel it and raise Cancelled when the caller leaves first."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_leave(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Cancelled("The caller left before the answer was complete.")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def collect(events: Events) -> tuple[list[Delta], Finished]:
    """Return a whole answer."""
    deltas: list[Delta] = []
    async with aclosing(events):
        async for event in events:
            match event:
                case Delta():
                    deltas.append(event)
                case Finished():
                    return deltas, event
                case Started():
                    pass
    raise Internal("internal error")


class EventStream(Response):
    """Server-sent events of an answer whose first event is at hand."""

    media_type = "text/event-stream"

    def __init__(
        self,
        first: Event,
        events: Events,
        shaper: shapes.Shaper,
        headers: Mapping[str, str],
        *,
        wants_usage: bool,
    ) -> None:
        super().__init__(None, 200, headers, self.media_type)
        self._first = first
        self._events = events
        self._shaper = shaper
        self._wants_usage = wants_usage

    async def __call__(
        self,
        scope: Scope,  # noqa: ARG002
        receive: Receive,
        send: Send,
    ) -> None:
        """Send chunks until the answer ends or the caller leaves."""
        headers = [header for header in self.raw_headers if header[0] != b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with aclosing(self._events):
            try:
                await while_present(receive, self._send_all(send))
            except Cancelled:
                return

    async def _send_all(self, send: Send) -> None:
        try:
            event: Event | None = self._first
            while event is not None:
                for chunk in self._chunks(event):
                    await _send(send, shapes.sse(chunk))
                event = await anext(self._events, None)
        except UnderstudyError as error:
            await _send(send, shapes.sse(error_body(error, self._shaper.request_id)))
        else:
            await _send(send, "data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _chunks(self, event: Event) -> list[shapes.Json]:
        match event:
            case Delta():
                return [self._shaper.delta(event)]
            case Finished() if self._wants_usage:
                return [self._shaper.end(event), self._shaper.usage_chunk(event)]
            case Finished():
                return [self._shaper.end(event)]
            case Started():
                return []


async def _send(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def _leave(receive: Receive) -> None:
    """Return once the caller is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
