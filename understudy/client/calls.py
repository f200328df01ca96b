"""What both clients share of gRPC: metadata of a call, and what a failed call means."""

import random
import time
import uuid
from collections.abc import Iterable
from typing import Final, cast

import grpc

from understudy.client.progress import Progress
from understudy.client.requests import GenerateParams, build_request
from understudy.client.retries import RetryPolicy, Tries
from understudy.errors import DeadlineExceeded, Unavailable, UnderstudyError
from understudy.rpc.metadata import new_request_id, request_metadata
from understudy.rpc.status import STATUS_KEY, from_rpc_error
from understudy.rpc.traces import Pairs, inject

DEFAULT_ADDRESS: Final = "127.0.0.1:9090"
DEFAULT_TIMEOUT_S: Final = 120.0
CHANNEL_OPTIONS: Final = (("grpc.enable_retries", 0),)
"""Retries are `Tries`' alone: two layers of them would multiply."""

_TRANSPORT_CODES: Final = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


def new_tries(policy: RetryPolicy, timeout_s: float) -> Tries:
    """Start the tries at one request, under a fresh request id and the real clock."""
    return Tries(
        policy,
        timeout_s=timeout_s,
        request_id=new_request_id(),
        clock=time.monotonic,
        draw=random.random,
    )


def new_progress(params: GenerateParams, policy: RetryPolicy, timeout_s: float) -> Progress:
    """Start one answer; raises InvalidArgument when the params cannot be sent."""
    request = build_request(params, idempotency_key=uuid.uuid4().hex)
    return Progress(request, new_tries(policy, params.get("timeout_s", timeout_s)))


def call_metadata(request_id: str, api_key: str | None) -> Pairs:
    """Return the metadata of one call: request id, then API key and trace context if any."""
    return inject(request_metadata(request_id, api_key))


def to_error(error: grpc.RpcError) -> UnderstudyError:
    """Return the named error of a failed call.

    The platform's own errors carry details. INTERNAL or UNKNOWN without them is a broken
    connection (a reset stream, a proxy that lost its upstream), which trying again may mend.
    """
    named = from_rpc_error(error)
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError), "a failed call has a status"
    trailing = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    has_details = any(key == STATUS_KEY for key, _ in trailing)
    if has_details:
        return named
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("The answer did not come in time.", named.metadata)
    if error.code() in _TRANSPORT_CODES:
        return Unavailable(f"The connection broke: {named.message}", named.metadata)
    return named
