"""What both ends of a call share: channels, times, status <-> error, request id, trace context.

Imports grpcio, protobuf and googleapis only, because the SDK stands on it; trace context works
when opentelemetry-api is importable and is silently off when it is not.
"""

from understudy.rpc.channels import (
    DEFAULT_CALL_TIMEOUT_S,
    MAX_MESSAGE_BYTES,
    WITHOUT_POLICY,
    open_channel,
    open_sync_channel,
)
from understudy.rpc.deadlines import Deadline, current_deadline
from understudy.rpc.durations import to_seconds
from understudy.rpc.metadata import current_request_id, request_metadata
from understudy.rpc.peers import Peer, Peers, plaintext
from understudy.rpc.status import error_from_proto, error_to_proto, from_rpc_error, to_status
from understudy.rpc.traces import extract, inject, traceparent

__all__ = [
    "DEFAULT_CALL_TIMEOUT_S",
    "MAX_MESSAGE_BYTES",
    "WITHOUT_POLICY",
    "Deadline",
    "Peer",
    "Peers",
    "current_deadline",
    "current_request_id",
    "error_from_proto",
    "error_to_proto",
    "extract",
    "from_rpc_error",
    "inject",
    "open_channel",
    "open_sync_channel",
    "plaintext",
    "request_metadata",
    "to_seconds",
    "to_status",
    "traceparent",
]
