"""A router that answers what a test tells it to, over real gRPC, in the test's own process.

    with FakeRouter() as router, Client(router.address) as client:
        router.break_next(after_deltas=1)
        assert client.complete(prompt="Hi").text == "Hello, world."

It keeps the router's promises that callers can see (resume tokens, idempotency keys, named errors
with request ids) and nothing else: no model, no policy.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Final, NoReturn, Self, TypeAlias

import grpc

from understudy.api.router.v1 import router_pb2, router_pb2_grpc
from understudy.client import Model
from understudy.errors import NotFound, Unauthenticated, UnderstudyError
from understudy.rpc.metadata import AUTHORIZATION_KEY, REQUEST_ID_KEY, accept_request_id, find
from understudy.rpc.status import STATUS_KEY, to_status, with_metadata
from understudy.testing.answers import FakeAnswer, ResponseT, encode_model, encode_started

Request: TypeAlias = (
    router_pb2.GenerateRequest | router_pb2.ResumeRequest | router_pb2.ListModelsRequest
)

_MAX_STREAMS: Final = 32
_SERVING: Final = b"\x08\x01"
"""A grpc.health.v1.HealthCheckResponse on the wire: the SDK need not install the health package."""


@dataclass(frozen=True, slots=True)
class ReceivedCall:
    """A call the fake router got, with what its metadata said."""

    request: Request
    request_id: str
    authorization: str | None
    time_left_s: float | None


@dataclass(frozen=True, slots=True)
class _Fault:
    """What goes wrong in one call, before `Started` (after_deltas None) or after so many deltas."""

    after_deltas: int | None
    error: UnderstudyError | None = None
    is_hold: bool = False


class FakeRouter(router_pb2_grpc.RouterServiceServicer):
    """A scripted RouterService on a loopback port; `stop` and `start` keep the port and journal.

    answer         what to answer: one answer for all, or a function of the request
    models         what ListModels returns after "auto"
    api_key        the only key accepted; None accepts every caller
    is_resumable   False acts like a router whose journal is away
    """

    def __init__(
        self,
        answer: FakeAnswer | Callable[[router_pb2.GenerateRequest], FakeAnswer] | None = None,
        *,
        models: tuple[Model, ...] = (),
        api_key: str | None = None,
        is_resumable: bool = True,
    ) -> None:
        self.calls: list[ReceivedCall] = []
        self.caller_left = threading.Event()
        self._answer = answer or FakeAnswer()
        self._models = (Model("auto", "", 2048, 1.0), *models)
        self._api_key = api_key
        self._is_resumable = is_resumable
        self._faults: deque[_Fault] = deque()
        self._journal: dict[str, FakeAnswer] = {}
        self._lock = threading.Lock()
        self._port = 0
        self._server: grpc.Server | None = None

    @property
    def address(self) -> str:
        """Where clients connect."""
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, on the same port as before where there was one."""
        executor = ThreadPoolExecutor(_MAX_STREAMS, thread_name_prefix="fake-router")
        self._server = grpc.server(executor, options=[("grpc.so_reuseport", 0)])
        router_pb2_grpc.add_RouterServiceServicer_to_server(self, self._server)
        watch = grpc.unary_stream_rpc_method_handler(_watch_health)
        health = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Watch": watch})
        self._server.add_generic_rpc_handlers((health,))
        self._port = self._server.add_insecure_port(self.address)
        self._server.start()

    def stop(self) -> None:
        """Die at once: running streams break, the port is closed."""
        if self._server is not None:
            self._server.stop(grace=None).wait()

    def fail_next(
        self, error: UnderstudyError, *, after_deltas: int | None = None, times: int = 1
    ) -> None:
        """Fail the next calls with this error, by default before they start."""
        self._add(_Fault(after_deltas, error), times)

    def break_next(self, *, after_deltas: int | None = None, times: int = 1) -> None:
        """Break the next calls like a lost connection: UNAVAILABLE without details."""
        self._add(_Fault(after_deltas), times)

    def hold_next(self, *, after_deltas: int | None = None, times: int = 1) -> None:
        """Stop sending until the caller leaves, which sets `caller_left`."""
        self._add(_Fault(after_deltas, is_hold=True), times)

    def Generate(  # noqa: N802  # named by the proto
        self, request: router_pb2.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[router_pb2.GenerateResponse]:
        """Answer as scripted."""
        request_id = self._admit(request, context)
        token = f"token-{request.idempotency_key or request_id}"
        with self._lock:
            if token not in self._journal:
                known = self._answer
                self._journal[token] = known if isinstance(known, FakeAnswer) else known(request)
            answer = self._journal[token]
        yield from self._stream(router_pb2.GenerateResponse, context, request_id, token, answer, 0)

    def Resume(  # noqa: N802  # named by the proto
        self, request: router_pb2.ResumeRequest, context: grpc.ServicerContext
    ) -> Iterator[router_pb2.ResumeResponse]:
        """Send the rest of an answer from the journal."""
        request_id = self._admit(request, context)
        token, received = request.resume_token, request.received_deltas
        answer = self._journal.get(token)
        if answer is None:
            _abort(context, NotFound(f"No request has the resume token {token!r}."), request_id)
        response = router_pb2.ResumeResponse
        yield from self._stream(response, context, request_id, token, answer, received)

    def ListModels(  # noqa: N802  # named by the proto
        self, request: router_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> router_pb2.ListModelsResponse:
        """List the scripted models."""
        request_id = self._admit(request, context)
        self._break(context, request_id, self._next_fault(), None)
        return router_pb2.ListModelsResponse(models=map(encode_model, self._models))

    def forget_journal(self) -> None:
        """Lose every answer that could be resumed."""
        self._journal.clear()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _add(self, fault: _Fault, times: int) -> None:
        with self._lock:
            self._faults.extend([fault] * times)

    def _next_fault(self) -> _Fault | None:
        with self._lock:
            return self._faults.popleft() if self._faults else None

    def _admit(self, request: Request, context: grpc.ServicerContext) -> str:
        metadata = list(context.invocation_metadata())
        request_id = accept_request_id(find(metadata, REQUEST_ID_KEY))
        key = find(metadata, AUTHORIZATION_KEY)
        self.calls.append(ReceivedCall(request, request_id, key, context.time_remaining()))
        if self._api_key is not None and key != f"Bearer {self._api_key}":
            _abort(context, Unauthenticated("No tenant owns this API key."), request_id)
        return request_id

    def _stream(
        self,
        response: type[ResponseT],
        context: grpc.ServicerContext,
        request_id: str,
        token: str,
        answer: FakeAnswer,
        received_deltas: int,
    ) -> Iterator[ResponseT]:
        fault = self._next_fault()
        if fault is not None and fault.is_hold:
            # A generator whose caller left between two messages is never resumed.
            context.add_callback(self.caller_left.set)
        self._break(context, request_id, fault, None)
        visible_token = token if self._is_resumable else ""
        left_s = context.time_remaining() or 0.0
        yield response(started=encode_started(request_id, visible_token, left_s))
        for delta in answer.deltas():
            self._break(context, request_id, fault, delta.index)
            if delta.index >= received_deltas:
                yield response(delta=delta)
        self._break(context, request_id, fault, sum(1 for _ in answer.deltas()))
        yield response(finished=answer.finished())

    def _break(
        self,
        context: grpc.ServicerContext,
        request_id: str,
        fault: _Fault | None,
        num_deltas: int | None,
    ) -> None:
        if fault is None or fault.after_deltas != num_deltas:
            return
        if fault.is_hold:
            _wait_for_end(context)
            context.abort(grpc.StatusCode.CANCELLED, "The caller left.")
        if fault.error is not None:
            _abort(context, fault.error, request_id)
        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


def _watch_health(_: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    yield _SERVING
    _wait_for_end(context)


def _wait_for_end(context: grpc.ServicerContext) -> None:
    ended = threading.Event()
    if context.add_callback(ended.set):
        ended.wait()


def _abort(context: grpc.ServicerContext, error: UnderstudyError, request_id: str) -> NoReturn:
    status = to_status(with_metadata(error, request_id=request_id))
    context.set_trailing_metadata(
        ((STATUS_KEY, status.SerializeToString()), (REQUEST_ID_KEY, request_id))
    )
    context.abort(grpc.StatusCode[error.code], error.message)
