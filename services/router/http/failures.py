"""Named errors -> OpenAI's error JSON with the HTTP status a client library expects."""

from __future__ import annotations

import math
from typing import Final

from starlette.responses import JSONResponse

from understudy.errors import ResourceExhausted, UnderstudyError

_STATUS: Final = {
    "INVALID_ARGUMENT": (400, "invalid_request_error"),
    "NOT_FOUND": (404, "invalid_request_error"),
    "UNAUTHENTICATED": (401, "authentication_error"),
    "RESOURCE_EXHAUSTED": (429, "rate_limit_error"),
    "ABORTED": (503, "server_error"),
    "UNAVAILABLE": (503, "server_error"),
    "DEADLINE_EXCEEDED": (504, "server_error"),
}
TOO_LARGE: Final = 413


def error_body(error: UnderstudyError, request_id: str) -> dict[str, object]:
    """Return OpenAI's error object."""
    _, kind = _STATUS.get(error.code, (500, "server_error"))
    return {
        "error": {
            "message": error.message,
            "type": kind,
            "param": error.metadata.get("field"),
            "code": error.reason.lower(),
            "request_id": request_id,
        }
    }


def error_response(
    error: UnderstudyError, request_id: str, status: int | None = None
) -> JSONResponse:
    """Return the response of a refused request."""
    headers = {"x-request-id": request_id}
    if isinstance(error, ResourceExhausted):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
        headers["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1000))
    status = status or _STATUS.get(error.code, (500, ""))[0]
    return JSONResponse(error_body(error, request_id), status, headers)
