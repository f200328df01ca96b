"""The blocking client and its stream; `progress` has every rule, this file only does the I/O."""

import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self, Unpack

import grpc

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
from understudy.rpc import open_sync_channel


class _Call(Protocol):
    """A running call; Generate and Resume stream the same events under two types."""

    def __iter__(self) -> Iterator[StreamMessage]: ...
    def cancel(self) -> object: ...


class AnswerStream(Iterator[Event]):
    """The events of one answer; leaving the `with` block ends the request wherever it stands.

    One thread iterates; any thread may call `close()`, which makes the iteration raise Cancelled.
    """

    def __init__(
        self, stub: router_pb2_grpc.RouterServiceStub, api_key: str | None, progress: Progress
    ) -> None:
        self._stub = stub
        self._api_key = api_key
        self._progress = progress
        self._call: _Call | None = None
        self._messages: Iterator[StreamMessage] | None = None
        self._closed = threading.Event()

    @property
    def request_id(self) -> str:
        """The id under which the platform knows this request."""
        return self._progress.request_id

    def __next__(self) -> Event:
        """Return the next event; raises the named error the request failed with."""
        while not self._progress.is_finished:
            event = self._receive()
            if event is not None:
                return event
        self.close()
        raise StopIteration

    def answer(self) -> Answer:
        """Read the stream to its end and return the whole answer."""
        for _ in self:
            pass
        return self._progress.answer()

    def close(self) -> None:
        """End the request if it still runs; closing twice is fine."""
        self._closed.set()
        if self._call is not None:
            self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _receive(self) -> Event | None:
        if self._closed.is_set():
            raise self._progress.named(Cancelled("The stream was closed."))
        if self._messages is None:
            self._messages = self._open(self._progress.next_step())
            if self._closed.is_set():  # by another thread while this one opened
                self.close()
        try:
            message = next(self._messages, None)
        except grpc.RpcError as error:
            delay_s = self._progress.fail(to_error(error))
        else:
            if message is not None:
                return self._progress.receive(message)
            delay_s = self._progress.end_early()
        self._call = self._messages = None
        self._closed.wait(delay_s)
        return None

    def _open(self, step: Step) -> Iterator[StreamMessage]:
        metadata = call_metadata(self.request_id, self._api_key)
        call: _Call
        if isinstance(step.request, router_pb2.ResumeRequest):
            call = self._stub.Resume(step.request, timeout=step.timeout_s, metadata=metadata)
        else:
            call = self._stub.Generate(step.request, timeout=step.timeout_s, metadata=metadata)
        self._call = call
        return iter(call)


class Client:
    """Asks the platform, blocking; safe to share between threads.

        with Client("127.0.0.1:9090") as client:
            answer = client.complete(messages=[{"role": "user", "content": "Hello"}])

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
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._retries = retries or RetryPolicy()
        peer = None if tls is None else tls.peer()
        self._channel = open_sync_channel(address, options=CHANNEL_OPTIONS, peer=peer)
        self._stub = router_pb2_grpc.RouterServiceStub(self._channel)

    def generate(self, **params: Unpack[GenerateParams]) -> AnswerStream:
        """Open an answer as a stream of events; use it in a `with` block."""
        progress = new_progress(params, self._retries, self._timeout_s)
        return AnswerStream(self._stub, self._api_key, progress)

    def complete(self, **params: Unpack[GenerateParams]) -> Answer:
        """Return a whole answer; raises the named error the request failed with."""
        with self.generate(**params) as stream:
            return stream.answer()

    def models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """List the models a caller may name, "auto" first."""
        tries = new_tries(self._retries, timeout_s or self._timeout_s)
        request = router_pb2.ListModelsRequest()
        metadata = call_metadata(tries.request_id, self._api_key)
        while True:
            left_s = tries.time_left_s()
            try:
                return to_models(self._stub.ListModels(request, timeout=left_s, metadata=metadata))
            except grpc.RpcError as error:
                time.sleep(tries.fail(to_error(error)))

    def close(self) -> None:
        """Close the connection; answers still streaming end as cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
