"""Payloads as tensors and tensors as payloads, for requests and replies.

Encoding hands out views of the tensors' own memory. Decoding copies once into memory that torch
allocated: received bytes are read-only and unaligned, and what a GEMM computes may depend on the
alignment of its input.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from understudy.errors import FailedPrecondition
from understudy.exchange.frame import ITEM_BYTES, Buffer, DType, Frame, FrameStatus, Header
from understudy.exchange.traces import SEGMENT, TraceSegment, pack_segments, unpack_segments

_TIMES: Final = struct.Struct("<4Q")
MAX_EXPERT_ID: Final = 2**16 - 1
MAX_ERROR_BYTES: Final = 1024


class ServerTimes(NamedTuple):
    """Four readings of the expert worker's monotonic clock, in nanoseconds.

    Only differences mean something: each side computes intervals of its own clock.
    """

    received_ns: int
    started_ns: int
    finished_ns: int
    sent_ns: int


class Request(NamedTuple):
    """The content of a REQUEST."""

    traces: tuple[TraceSegment, ...]
    hidden: Tensor
    """(T, D) float32."""
    expert_ids: Tensor | None
    """(T, K) int64; None for a dense feed-forward."""
    weights: Tensor | None
    """(T, K) float32."""


def tensor_view(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor without copying; keep the tensor alive."""
    return tensor.detach().contiguous().numpy().data.cast("B")


def request_pieces(
    traces: Sequence[TraceSegment],
    hidden: Tensor,  # (T, D)
    expert_ids: Tensor | None,  # (T, K)
    weights: Tensor | None,  # (T, K)
) -> list[Buffer]:
    """Return the pieces of a request's message. Raises FailedPrecondition for ids beyond u16."""
    if hidden.dtype != torch.float32:
        raise FailedPrecondition(f"Hidden states travel as float32, not {hidden.dtype}.")
    pieces: list[Buffer] = [pack_segments(traces), tensor_view(hidden)]
    if expert_ids is not None and weights is not None:
        if int(expert_ids.max()) > MAX_EXPERT_ID:
            raise FailedPrecondition(
                f"Expert id {int(expert_ids.max())} exceeds the frame's limit of {MAX_EXPERT_ID}."
            )
        pieces.append(tensor_view(expert_ids.to(torch.uint16)))
        pieces.append(tensor_view(weights.float()))
    return pieces


def read_request(frame: Frame) -> Request:
    """Return the content of a whole REQUEST message.

    Raises FailedPrecondition when the payload has not exactly the length that the header's token
    count, hidden size, K and trace count imply.
    """
    header = frame.header
    traces_end = header.num_traces * SEGMENT.size
    hidden_end = traces_end + header.num_tokens * header.hidden_size * ITEM_BYTES[DType.FLOAT32]
    num_choices = header.num_tokens * header.num_choices
    ids_end, weights_end = hidden_end + 2 * num_choices, hidden_end + 6 * num_choices
    _check_length(header, len(frame.payload), weights_end)
    view = frame.payload
    hidden = _read(view[traces_end:hidden_end], (header.num_tokens, header.hidden_size))
    traces = unpack_segments(view[:traces_end])
    if not header.num_choices:
        return Request(traces, hidden, None, None)
    shape = (header.num_tokens, header.num_choices)
    ids = _read(view[hidden_end:ids_end], shape, torch.uint16).to(torch.int64)
    return Request(traces, hidden, ids, _read(view[ids_end:], shape))


def reply_pieces(times: ServerTimes, total: Tensor) -> list[Buffer]:  # total (T, D)
    """Return the pieces of a successful reply's message."""
    return [_TIMES.pack(*times), tensor_view(total)]


def error_pieces(message: str) -> list[Buffer]:
    """Return the pieces of a failed reply's message: one sentence, at most 1 KiB."""
    return [message.encode()[:MAX_ERROR_BYTES]]


def read_reply(frame: Frame) -> tuple[ServerTimes, Tensor]:
    """Return timestamps and sum (T, D) of a whole, successful REPLY message.

    Raises FailedPrecondition when the payload's length is not what the header implies.
    """
    header = frame.header
    sum_bytes = header.num_tokens * header.hidden_size * ITEM_BYTES[DType.FLOAT32]
    _check_length(header, len(frame.payload), _TIMES.size + sum_bytes)
    times = ServerTimes._make(_TIMES.unpack_from(frame.payload))
    return times, _read(frame.payload[_TIMES.size :], (header.num_tokens, header.hidden_size))


def read_error(frame: Frame) -> str:
    """Return the sentence of a failed REPLY."""
    assert frame.header.status != FrameStatus.OK
    return bytes(frame.payload[:MAX_ERROR_BYTES]).decode(errors="replace")


def _read(view: memoryview, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    tensor = torch.empty(shape, dtype=dtype, device="cpu")
    if tensor.numel():
        tensor.numpy().data.cast("B")[:] = view
    return tensor


def _check_length(header: Header, actual: int, expected: int) -> None:
    if actual != expected:
        raise FailedPrecondition(
            f"The message of step {header.step}, layer {header.layer} has {actual} bytes; "
            f"{header.num_tokens} tokens of hidden size {header.hidden_size} with "
            f"{header.num_choices} experts each and {header.num_traces} traces take {expected}.",
            {"field": "length", "value": str(actual)},
        )
