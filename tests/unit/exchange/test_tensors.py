"""Payloads of requests and replies as tensors."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.errors import FailedPrecondition
from understudy.exchange.frame import FrameStatus, FrameType, Header, decode_frame, encode_frame
from understudy.exchange.tensors import (
    ServerTimes,
    error_pieces,
    read_error,
    read_reply,
    read_request,
    reply_pieces,
    request_pieces,
)
from understudy.exchange.traces import TraceSegment

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

TIMES = ServerTimes(1, 2, 3, 4)


def _header(num_tokens: int, hidden_size: int, num_choices: int = 0, num_traces: int = 0) -> Header:
    return Header(
        FrameType.REQUEST, 1, 2, 3, 0, 0, num_tokens, hidden_size, num_choices, 0, 1, num_traces
    )


@UNHURRIED
@given(
    num_tokens=st.integers(1, 9),
    hidden_size=st.integers(1, 9),
    num_choices=st.integers(0, 3),
    num_traces=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
def test_a_request_round_trips(num_tokens, hidden_size, num_choices, num_traces, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, hidden_size, generator=generator)
    shape = (num_tokens, num_choices)
    ids = torch.randint(0, 65536, shape, generator=generator) if num_choices else None
    weights = torch.rand(shape, generator=generator) if num_choices else None
    traces = (TraceSegment(b"t" * 16, b"s" * 8, 1, num_tokens),) * num_traces
    frame = encode_frame(
        _header(num_tokens, hidden_size, num_choices, num_traces),
        request_pieces(traces, hidden, ids, weights),
    )
    request = read_request(decode_frame(frame))
    assert request.traces == traces
    assert torch.equal(request.hidden, hidden)
    for read, sent in ((request.expert_ids, ids), (request.weights, weights)):
        assert read is sent is None or torch.equal(read, sent)


def test_a_transposed_tensor_travels_by_value():
    hidden = torch.arange(6.0).reshape(2, 3).T
    frame = decode_frame(encode_frame(_header(3, 2), request_pieces((), hidden, None, None)))
    assert torch.equal(read_request(frame).hidden, hidden)


def test_what_was_read_owns_its_memory_and_is_aligned():
    hidden = torch.ones(2, 8)
    frame = decode_frame(encode_frame(_header(2, 8), request_pieces((), hidden, None, None)))
    read = read_request(frame).hidden
    assert read.data_ptr() % 64 == 0
    read += 1
    assert torch.equal(read_request(frame).hidden, hidden)


@pytest.mark.parametrize("wrong", [_header(3, 8), _header(2, 9), _header(2, 8, 1)])
def test_a_request_of_the_wrong_length_names_both_lengths(wrong: Header):
    pieces = request_pieces((), torch.ones(2, 8), None, None)
    with pytest.raises(FailedPrecondition, match="step 2, layer 3 has 64 bytes"):
        read_request(decode_frame(encode_frame(wrong, pieces)))


def test_other_dtypes_and_expert_ids_beyond_u16_are_refused():
    with pytest.raises(FailedPrecondition, match="float16"):
        request_pieces((), torch.ones(2, 8, dtype=torch.float16), None, None)
    with pytest.raises(FailedPrecondition, match="Expert id 65536"):
        request_pieces((), torch.ones(1, 8), torch.tensor([[65536]]), torch.ones(1, 1))


def test_a_reply_round_trips_and_a_short_one_is_refused():
    header = _header(2, 8)._replace(type=FrameType.REPLY)
    total = torch.randn(2, 8, generator=torch.Generator().manual_seed(3))
    times, read = read_reply(decode_frame(encode_frame(header, reply_pieces(TIMES, total))))
    assert times == TIMES
    assert torch.equal(read, total)
    with pytest.raises(FailedPrecondition, match="take 96"):
        read_reply(decode_frame(encode_frame(header, reply_pieces(TIMES, total[:1]))))


def test_an_error_travels_as_a_bounded_sentence():
    header = _header(0, 8)._replace(type=FrameType.REPLY, status=FrameStatus.FAILED)
    frame = decode_frame(encode_frame(header, error_pieces("No. " * 1000)))
    assert read_error(frame) == "No. " * 256
