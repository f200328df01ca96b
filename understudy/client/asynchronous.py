"""The asyncio client and its stream; `progress` has every rule, this file only does the I/O."""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, Unpack

import grpc
import grpc.aio

from understudy.api.router.v1 import router_pb2, router_pb2_grpc
from understudy.client.calls import (
    CHANNEL_OPTIONS,
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_S,
    call_metadata,
    new_progress,
    new_tries,
    to_error,
)
from understudy.client.events import StreamMessage, to_models
from understudy.client.progress import Progress, Step
from understudy.client.requests import GenerateParams
from understudy.client.results import Answer, Event, Model
from understudy.client.retries import RetryPolicy
from understudy.client.tls import Tls
from understudy.errors import Cancelled
from understudy.rpc import open_channel

if TYPE_CHECKING:
    from understudy.api.router.v1.router_pb2_grpc import RouterServiceAsyncStub


class _Call(Protocol):
    """A running call; Generate and Resume stream the same events under two types."""

    def __aiter__(self) -> AsyncIterator[StreamMessage]: ...
    def cancel(self) -> bool: ...


class AsyncAnswerStream(AsyncIterator[Event]):
    """The events of one answer; leaving the `async with` block ends the request where it stands."""

    def __init__(
        self, stub: "RouterServiceAsyncStub", api_key: str | None, progress: Progress
    ) -> None:
        self._stub = stub
        self._api_key = api_key
        self._progress = progress
        self._call: _Call | None = None
        self._messages: AsyncIterator[StreamMessage] | None = None
        self._is_closed = False

    @property
    def request_id(self) -> str:
        """The id under which the platform knows this request."""
        return self._progress.request_id

    async def __anext__(self) -> Event:
        """Return the next event; raises the named error the request failed with."""
        while not self._progress.is_finished:
            event = await self._receive()
            if event is not None:
                return event
        await self.close()
        raise StopAsyncIteration

    async def answer(self) -> Answer:
        """Read the stream to its end and return the whole answer."""
        async for _ in self:
            pass
        return self._progress.answer()

    async def close(self) -> None:
        """End the request if it still runs; closing twice is fine."""
        self._is_closed = True
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _receive(self) -> Event | None:
        if self._is_closed:
            raise self._progress.named(Cancelled("The stream was closed."))
        if self._messages is None:
            self._messages = self._open(self._progress.next_step())
        try:
            message = await anext(self._messages, None)
        except grpc.RpcError as error:
            delay_s = self._progress.fail(to_error(error))
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            # Nobody cancelled the reader: grpc says so when the call or its channel is closed.
            raise self._progress.named(Cancelled("The stream was closed.")) from None
        else:
            if message is not None:
                return self._progress.receive(message)
            delay_s = self._progress.end_early()
        self._call = self._messages = None
        await asyncio.sleep(delay_s)
        return None

    def _open(self, step: Step) -> AsyncIterator[StreamMessage]:
        metadata = call_metadata(self.request_id, self._api_key)
        call: _Call
        if isinstance(step.request, router_pb2.ResumeRequest):
            call = self._stub.Resume(step.request, timeout=step.timeout_s, metadata=metadata)
        else:
            call = self._stub.Generate(step.request, timeout=step.timeout_s, metadata=metadata)
        self._call = call
        return aiter(call)


class AsyncClient:
    """Asks the platform from asyncio; one event loop uses it.

        async with AsyncClient("127.0.0.1:9090") as client:
            answer = await client.complete(messages=[{"role": "user", "content": "Hello"}])

    `timeout_s` is the time for a whole answer unless a call brings its own. `tls` says whom to
    trust; without it the client speaks plaintext.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: RetryPolicy | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._address = address
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._peer = None if tls is None else tls.peer()
        self._retries = retries or RetryPolicy()
        self._channel: grpc.aio.Channel | None = None

    def generate(self, **params: Unpack[GenerateParams]) -> AsyncAnswerStream:
        """Open an answer as a stream of events; use it in an `async with` block."""
        progress = new_progress(params, self._retries, self._timeout_s)
        return AsyncAnswerStream(self._stub(), self._api_key, progress)

    async def complete(self, **params: Unpack[GenerateParams]) -> Answer:
        """Return a whole answer; raises the named error the request failed with."""
        async with self.generate(**params) as stream:
            return await stream.answer()

    async def models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """List the models a caller may name, "auto" first."""
        tries = new_tries(self._retries, timeout_s or self._timeout_s)
        request = router_pb2.ListModelsRequest()
        metadata = call_metadata(tries.request_id, self._api_key)
        while True:
            left_s = tries.time_left_s()
            try:
                reply = await self._stub().ListModels(request, timeout=left_s, metadata=metadata)
            except grpc.RpcError as error:
                await asyncio.sleep(tries.fail(to_error(error)))
            else:
                return to_models(reply)

    async def close(self) -> None:
        """Close the connection; answers still streaming end as cancelled."""
        if self._channel is not None:
            await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _stub(self) -> "RouterServiceAsyncStub":
        if self._channel is None:  # a channel belongs to the running loop
            self._channel = open_channel(self._address, options=CHANNEL_OPTIONS, peer=self._peer)
        return router_pb2_grpc.RouterServiceStub(self._channel)
