"""A span over a stream of messages that ends exactly once, whatever becomes of the stream.

Spans tied to a generator's `finally` leak when the generator is never started, and miss the
cancellation that is no `Exception`. Here the span belongs to a wrapper object: it ends when the
stream finishes, fails, is cancelled or closed, and when the wrapper is dropped unread.
"""

import asyncio
import time
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar, runtime_checkable

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from understudy.telemetry import names

T = TypeVar("T")
AttributeValue = str | bool | int | float


@runtime_checkable
class _Closable(Protocol):
    async def aclose(self) -> None: ...


@runtime_checkable
class _Cancellable(Protocol):
    def cancel(self) -> bool: ...


class SpanStream(Generic[T]):
    """Iterates `stream` under a span; also an async context manager that closes both.

    The span starts at once, under `parent` or the current span, and is not made current: use
    `context` to start children. Leaving the context or `aclose()` closes a generator and cancels
    a gRPC call. A stream that failed with an exception marks the span as an error.
    """

    def __init__(
        self,
        tracer: Tracer,
        name: str,
        stream: AsyncIterable[T],
        *,
        attributes: Mapping[str, AttributeValue] | None = None,
        parent: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> None:
        self.span = tracer.start_span(name, parent, kind, dict(attributes or {}))
        self._stream = stream
        self._iterator: AsyncIterator[T] | None = None
        self._ending = _Ending(self.span)
        self._dropped = weakref.finalize(self, self._ending.end, "dropped", None)
        self._dropped.atexit = False

    @property
    def context(self) -> Context:
        """A context in which this stream's span is the current one."""
        return set_span_in_context(self.span)

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Add attributes to the span; without effect once it has ended."""
        self.span.set_attributes(attributes)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._iterator is None:
            self._iterator = aiter(self._stream)
        try:
            message = await anext(self._iterator)
        except StopAsyncIteration:
            self._ending.end("finished", None)
            raise
        except asyncio.CancelledError as error:
            self._ending.end("cancelled", error)
            raise
        except Exception as error:
            self._ending.end("failed", error)
            raise
        self._ending.count()
        return message

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception):
            self._ending.end("failed", error)
        await self.aclose()

    async def aclose(self) -> None:
        """End the span (`cancelled` when the stream had not finished) and release the stream."""
        self._ending.end("cancelled", None)
        parts: tuple[object, object] = (self._iterator, self._stream)
        for part in parts:
            if isinstance(part, _Closable):
                await part.aclose()
            elif isinstance(part, _Cancellable):
                part.cancel()


class _Ending:
    """Ends a span once; shared with the finalizer, so it must not hold the wrapper."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._started_at = time.monotonic()
        self._num_messages = 0
        self._is_ended = False

    def count(self) -> None:
        if self._num_messages == 0:
            seconds = time.monotonic() - self._started_at
            self._span.set_attribute(names.STREAM_FIRST_MESSAGE_S, seconds)
        self._num_messages += 1

    def end(self, outcome: str, error: BaseException | None) -> None:
        if self._is_ended:
            return
        self._is_ended = True
        self._span.set_attribute(names.STREAM_MESSAGES, self._num_messages)
        self._span.set_attribute(names.STREAM_OUTCOME, outcome)
        if outcome != "finished":
            kind = outcome if error is None else type(error).__name__
            self._span.set_attribute(names.ERROR_TYPE, kind)
        if outcome == "failed":
            self._span.set_status(Status(StatusCode.ERROR, str(error)))
        self._span.end()
