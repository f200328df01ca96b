"""The one server interceptor: request id, admission, deadline, trace, metrics, errors.

Whatever a servicer does leaves here as a proper status. A call runs in one task from end to end:
response streams are driven from it, so a caller that leaves closes the servicer's generator at
once and in its own context, not whenever the garbage collector finds it.
"""

import asyncio
import inspect
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
import grpc.aio

from understudy.errors import DeadlineExceeded, Internal, Unavailable, UnderstudyError
from understudy.rpc.deadlines import Deadline, set_current_deadline
from understudy.rpc.metadata import REQUEST_ID_KEY, accept_request_id, set_current_request_id
from understudy.rpc.status import STATUS_KEY, to_status, with_metadata
from understudy.serving.calls import RunningCalls
from understudy.serving.observation import CallObserver, Outcome
from understudy.serving.served_context import ServedContext
from understudy.serving.transport import Callers

if TYPE_CHECKING:
    _Interceptor = grpc.aio.ServerInterceptor[object, object]
    _Context = grpc.aio.ServicerContext[object, object]
    _Handler = grpc.RpcMethodHandler[object, object]
    Behaviour = Callable[[object, _Context], object]
else:  # grpcio's own classes are not generic
    _Interceptor = grpc.aio.ServerInterceptor

_INFRASTRUCTURE: Final = ("/grpc.health.", "/grpc.reflection.")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChassisInterceptor(_Interceptor):
    """Wraps every call of a server; health and reflection are not admitted, limited or counted."""

    calls: RunningCalls
    """Admission and drain."""
    observer: CallObserver
    """Spans and metrics."""
    max_call_s: float
    """Deadline of calls that come without one."""
    callers: Callers | None = None
    """Whose certificates may call; None where callers have none."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["_Handler"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "_Handler":
        """Replace a method's behaviour by one that lets no exception out unmapped."""
        handler: _Handler | None = await continuation(handler_call_details)
        if handler is None:
            return None  # type: ignore[return-value]  # grpcio answers UNIMPLEMENTED
        method = handler_call_details.method
        if method.startswith(_INFRASTRUCTURE):
            return _replaced(handler, self._plain)
        return _replaced(handler, lambda behaviour: self._guarded(method, behaviour))

    def _plain(self, behaviour: "Behaviour") -> "Behaviour":
        async def serve_call(request: object, context: "_Context") -> object:
            try:
                return await _drive(behaviour, request, context)
            except UnderstudyError as error:
                await _abort(context, error)
                return None

        return serve_call

    def _guarded(self, method: str, behaviour: "Behaviour") -> "Behaviour":
        async def serve_call(request: object, raw: "_Context") -> object:
            context = ServedContext(raw)
            headers = _text_headers(context)
            request_id = accept_request_id(headers.get(REQUEST_ID_KEY))
            set_current_request_id(request_id)
            context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
            deadline = self._deadline(method, context)
            set_current_deadline(deadline)
            with self.observer.observed(method, headers) as outcome:
                try:
                    if self.callers is not None:
                        self.callers.check(_names_of(context))
                    response = await self._limited(method, deadline, behaviour, request, context)
                except asyncio.CancelledError:
                    if deadline.is_expired:
                        outcome.code = "DEADLINE_EXCEEDED"
                    raise
                except Exception as error:  # noqa: BLE001  # the boundary of the service
                    failure = _named(error, request_id, method)
                    outcome.code, outcome.detail = failure.code, failure.message
                    await _abort(context, failure)
                    return None
                _succeed(outcome, context)
                return response

        return serve_call

    async def _limited(
        self,
        method: str,
        deadline: Deadline,
        behaviour: "Behaviour",
        request: object,
        context: "_Context",
    ) -> object:
        """Run the behaviour while it is admitted, for as long as its deadline allows."""
        with self.calls.admitted(method):
            seconds = None if deadline.expires_at == math.inf else deadline.remaining_s
            try:
                async with asyncio.timeout(seconds) as limit:
                    return await _drive(behaviour, request, context)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise DeadlineExceeded("The deadline passed before the call was done.") from None
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or not self.calls.is_interrupted():
                    raise
                task.uncancel()
                raise Unavailable(
                    "This process stopped before the call was done; retry on another replica."
                ) from None

    def _deadline(self, method: str, context: "_Context") -> Deadline:
        remaining: float | None = context.time_remaining()
        if remaining is None:
            remaining = math.inf if self.calls.is_endless(method) else self.max_call_s
        return Deadline.after(remaining)


async def _drive(behaviour: "Behaviour", request: object, context: "_Context") -> object:
    result = behaviour(request, context)
    if inspect.isasyncgen(result):
        async with aclosing(result):
            async for message in result:
                await context.write(message)
        return None
    return await result if inspect.isawaitable(result) else result


def _named(error: Exception, request_id: str, method: str) -> UnderstudyError:
    """The error to send: a named one as it is, anything else as a bug without its cause."""
    if not isinstance(error, UnderstudyError):
        _log.error(
            "A call failed because of a bug; the caller sees INTERNAL.",
            exc_info=error,
            extra={"method": method},
        )
        error = Internal("internal error")
    return with_metadata(error, request_id=request_id)


async def _abort(context: "_Context", error: UnderstudyError) -> None:
    status = to_status(error)
    pairs = ((key, value) for key, value in context.trailing_metadata() or ())
    trailing = (*pairs, (STATUS_KEY, status.SerializeToString()))
    await context.abort(grpc.StatusCode[error.code], status.message, trailing)


def _succeed(outcome: Outcome, context: "_Context") -> None:
    code: grpc.StatusCode | int | None = context.code()
    outcome.code = code.name if isinstance(code, grpc.StatusCode) else "OK"


def _text_headers(context: "_Context") -> dict[str, str]:
    pairs = context.invocation_metadata() or ()
    return {key: value for key, value in pairs if isinstance(value, str)}


def _names_of(context: "_Context") -> list[str]:
    """Names in the certificate of the caller."""
    names = context.auth_context().get("x509_subject_alternative_name", ())
    return [name.decode("utf-8", "replace") for name in names]


def _replaced(handler: "_Handler", wrap: "Callable[[Behaviour], Behaviour]") -> "_Handler":
    """The same method with its behaviour wrapped, whichever of the four kinds it is."""
    codec = (handler.request_deserializer, handler.response_serializer)
    kinds = {
        (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
        (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
        (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
        (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
    }
    make, behaviour = kinds[bool(handler.request_streaming), bool(handler.response_streaming)]
    return make(wrap(behaviour), *codec)  # type: ignore[arg-type]
