"""Turns errors into `google.rpc.Status` and back, with nothing lost on the way.

The class survives through `ErrorInfo.reason`; where the other end knows a reason that this end
does not, the class of the code stands in and the reason stays in the metadata. What carries no
`ErrorInfo` (a dead connection, a proxy) is mapped by its gRPC code alone.
"""

from collections.abc import Iterable, Mapping
from typing import Final, Protocol, TypeVar, runtime_checkable

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from understudy.errors import (
    DOMAIN,
    REASONS,
    Aborted,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    UnderstudyError,
)
from understudy.rpc.metadata import REQUEST_ID_KEY, find
from understudy.rpc.peers import explain

STATUS_KEY: Final = "grpc-status-details-bin"
MAX_MESSAGE_BYTES: Final = 768
MAX_VALUE_BYTES: Final = 256
MAX_METADATA_BYTES: Final = 1200
"""Together with base64 and percent encoding these stay below gRPC's 8 KiB of trailing metadata."""

_BY_CODE: Final[Mapping[str, type[UnderstudyError]]] = {
    "INVALID_ARGUMENT": InvalidArgument,
    "OUT_OF_RANGE": InvalidArgument,
    "UNIMPLEMENTED": InvalidArgument,
    "NOT_FOUND": NotFound,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": Unauthenticated,
    "RESOURCE_EXHAUSTED": ResourceExhausted,
    "UNAVAILABLE": Unavailable,
    "ABORTED": Aborted,
    "FAILED_PRECONDITION": FailedPrecondition,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": Cancelled,
}


_Detail = TypeVar("_Detail", bound=Message)


@runtime_checkable
class _Described(Protocol):
    """What a failed call tells, synchronous or asyncio alike."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


def to_status(error: UnderstudyError) -> status_pb2.Status:
    """`google.rpc.Status` of an error: code, message, `ErrorInfo` and the detail its code asks for.

    Messages and metadata are cut to what fits into trailing metadata.
    """
    metadata = _bounded(error.metadata)
    message = _cut(error.message, MAX_MESSAGE_BYTES)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    details = [_packed(info)]
    if isinstance(error, InvalidArgument) and "field" in metadata:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=metadata["field"], description=message
        )
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if isinstance(error, ResourceExhausted):
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=code_pb2.Code.Value(error.code), message=message, details=details)


error_to_proto = to_status


def error_from_proto(status: status_pb2.Status) -> UnderstudyError:
    """The error a status describes, as the class that was raised."""
    known = code_pb2.Code.values()
    code = code_pb2.Code.Name(status.code) if status.code in known else "INTERNAL"
    info = _unpacked(status, error_details_pb2.ErrorInfo())
    retry = _unpacked(status, error_details_pb2.RetryInfo())
    retry_after_s = None if retry is None else retry.retry_delay.ToNanoseconds() / 1e9
    if info is None or info.domain != DOMAIN:
        return _build(_BY_CODE.get(code, Internal), status.message, {}, retry_after_s)
    error_class = REASONS.get(info.reason)
    metadata = dict(info.metadata)
    if error_class is None:
        error_class = _BY_CODE.get(code, Internal)
        metadata["reason"] = info.reason
    return _build(error_class, status.message, metadata, retry_after_s)


def from_rpc_error(error: grpc.RpcError) -> UnderstudyError:
    """The error behind a failed call (synchronous or asyncio), with the request id where known."""
    failed: object = error
    if not isinstance(failed, _Described):
        return Internal(f"The call failed without a status: {error}")
    trailing = list(failed.trailing_metadata() or ())
    failure = _attached(trailing) or error_from_proto(
        status_pb2.Status(
            code=code_pb2.Code.Value(failed.code().name), message=explain(failed.details() or "")
        )
    )
    request_id = find(trailing, REQUEST_ID_KEY)
    if request_id is None or failure.request_id is not None:
        return failure
    return with_metadata(failure, request_id=request_id)


def with_metadata(error: UnderstudyError, **entries: str) -> UnderstudyError:
    """A copy of `error` with these metadata entries added; the given one stays as it is."""
    retry_after_s = error.retry_after_s if isinstance(error, ResourceExhausted) else None
    return _build(type(error), error.message, {**error.metadata, **entries}, retry_after_s)


def _build(
    error_class: type[UnderstudyError],
    message: str,
    metadata: Mapping[str, str],
    retry_after_s: float | None,
) -> UnderstudyError:
    if issubclass(error_class, ResourceExhausted) and retry_after_s is not None:
        return error_class(message, metadata, retry_after_s=retry_after_s)
    return error_class(message, metadata)


def _attached(trailing: Iterable[tuple[str, str | bytes]]) -> UnderstudyError | None:
    for key, value in trailing:
        if key == STATUS_KEY and isinstance(value, bytes):
            try:
                return error_from_proto(status_pb2.Status.FromString(value))
            except DecodeError:
                return None
    return None


def _bounded(metadata: Mapping[str, str]) -> dict[str, str]:
    """The entries that fit, the request id first; long values are cut."""
    kept: dict[str, str] = {}
    left = MAX_METADATA_BYTES
    for key, value in sorted(metadata.items(), key=lambda entry: entry[0] != "request_id"):
        short = _cut(value, MAX_VALUE_BYTES)
        left -= len(key.encode("utf-8", "replace")) + len(short.encode())
        if left < 0:
            break
        kept[_cut(key, MAX_VALUE_BYTES)] = short
    return kept


def _cut(text: str, max_bytes: int) -> str:
    return text.encode("utf-8", "replace")[:max_bytes].decode("utf-8", "ignore")


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _unpacked(status: status_pb2.Status, into: _Detail) -> _Detail | None:
    for detail in status.details:
        if detail.Is(into.DESCRIPTOR):
            try:
                detail.Unpack(into)
            except DecodeError:
                return None
            return into
    return None
