"""The failure vocabulary shared by both ends of every call.

Domain code raises these; one server interceptor turns them into `google.rpc.Status` with
`ErrorInfo(reason, domain="understudy.dev")`; the client maps the reason back to the same class.
This module imports nothing, so any layer may use it.

    UnderstudyError
    ├── InvalidArgument      the caller must fix the request
    │   ├── PromptTooLong
    │   └── UnsupportedSchema
    ├── NotFound             unknown model, unknown resume token
    ├── Unauthenticated      no or wrong API key
    ├── ResourceExhausted    queue full, quota spent, no free blocks: wait `retry_after_s`
    ├── Unavailable          draining, dependency away: retry with backoff
    ├── Aborted              a worker lost the sequence: the router re-places it
    ├── FailedPrecondition   weights, frame or chunk format differ: the operator must act
    ├── DeadlineExceeded     the deadline passed
    ├── Cancelled            the caller left
    └── Internal             a bug: report it with the request id
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Final

DOMAIN: Final = "understudy.dev"


class UnderstudyError(Exception):
    """A named failure with a canonical status code, a stable reason and machine-readable metadata.

    `code` is the name of the canonical gRPC status; `reason` is what clients match on.
    """

    code: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata or {}))

    @property
    def request_id(self) -> str | None:
        """The id under which the platform knows the failed request, where it got that far."""
        return self.metadata.get("request_id")


class InvalidArgument(UnderstudyError):
    """The request is malformed; `metadata["field"]` names the offending field where known."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_ARGUMENT"


class PromptTooLong(InvalidArgument):
    """The prompt (plus the least output) does not fit the model's context."""

    reason = "PROMPT_TOO_LONG"


class UnsupportedSchema(InvalidArgument):
    """A schema is malformed or uses a keyword the grammar engine cannot enforce."""

    reason = "UNSUPPORTED_SCHEMA"


class NotFound(UnderstudyError):
    """The named thing (model, resume token, run) is not known here."""

    code = "NOT_FOUND"
    reason = "NOT_FOUND"


class Unauthenticated(UnderstudyError):
    """No API key came with the request, or one that no tenant owns."""

    code = "UNAUTHENTICATED"
    reason = "UNAUTHENTICATED"


class ResourceExhausted(UnderstudyError):
    """A limit is reached; `retry_after_s` says when to try again."""

    code = "RESOURCE_EXHAUSTED"
    reason = "RESOURCE_EXHAUSTED"

    def __init__(
        self,
        message: str,
        metadata: Mapping[str, str] | None = None,
        *,
        retry_after_s: float = 1.0,
    ) -> None:
        super().__init__(message, {**(metadata or {}), "retry_after_s": f"{retry_after_s:g}"})
        self.retry_after_s = retry_after_s


class Unavailable(UnderstudyError):
    """Nothing can serve this now (draining, dependency away); retrying later may help."""

    code = "UNAVAILABLE"
    reason = "UNAVAILABLE"


class Aborted(UnderstudyError):
    """A worker lost the sequence; the router places it elsewhere, the caller does nothing."""

    code = "ABORTED"
    reason = "SEQUENCE_LOST"


class FailedPrecondition(UnderstudyError):
    """Weights, frame or chunk formats differ between two parts; an operator must act."""

    code = "FAILED_PRECONDITION"
    reason = "FAILED_PRECONDITION"


class DeadlineExceeded(UnderstudyError):
    """The deadline passed before the work was done; its blocks are free again."""

    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


class Cancelled(UnderstudyError):
    """The caller left; its blocks are free again."""

    code = "CANCELLED"
    reason = "CANCELLED"


class Internal(UnderstudyError):
    """A bug on the other side; the message never carries its cause, the trace does."""


REASONS: Final[Mapping[str, type[UnderstudyError]]] = MappingProxyType(
    {
        error.reason: error
        for error in (
            InvalidArgument,
            PromptTooLong,
            UnsupportedSchema,
            NotFound,
            Unauthenticated,
            ResourceExhausted,
            Unavailable,
            Aborted,
            FailedPrecondition,
            DeadlineExceeded,
            Cancelled,
            Internal,
        )
    }
)
