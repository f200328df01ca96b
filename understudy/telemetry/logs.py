"""Structured logs: one JSON object a line on standard error, with trace id and request id.

What a call site passes as `extra` becomes fields of the object. Prompt text never belongs there.
"""

import json
import logging
import sys
import time
from typing import Final, TextIO

from opentelemetry import trace

from understudy.rpc.metadata import current_request_id

LEVELS: Final = ("debug", "info", "warning", "error")
_KNOWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_MAX_FIELD_CHARS: Final = 4096


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def __init__(self, service_name: str) -> None:
        super().__init__()
        self._service_name = service_name

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object without line breaks."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "service": self._service_name,
            "logger": record.name,
            "message": record.getMessage(),
        }
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            fields["trace_id"] = trace.format_trace_id(span.trace_id)
        if request_id := current_request_id():
            fields["request_id"] = request_id
        fields.update({key: value for key, value in vars(record).items() if key not in _KNOWN})
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=_bounded)


def _bounded(value: object) -> str:
    return str(value)[:_MAX_FIELD_CHARS]


def configure_logging(service_name: str, level: str, stream: TextIO | None = None) -> None:
    """Send records of this level and above to `stream` (standard error) as JSON lines."""
    output = logging.StreamHandler(stream or sys.stderr)
    output.setFormatter(JsonFormatter(service_name))
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(level.upper())
