"""Frames and messages: what goes in comes out, and whatever is broken is named."""

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.errors import FailedPrecondition, UnderstudyError
from understudy.exchange.frame import (
    HEADER,
    MAX_FRAME_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_PAYLOAD_BYTES,
    DType,
    FrameStatus,
    FrameType,
    Header,
    decode_frame,
    encode_frame,
    peek_header,
)
from understudy.exchange.parts import Assembler, split_message

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
HEADERS = st.builds(
    Header,
    type=st.sampled_from(FrameType),
    epoch=U64,
    step=U64,
    layer=U16,
    micro_batch=U16,
    lane=U32,
    num_tokens=U32,
    hidden_size=U32,
    num_choices=U16,
    first_shard=U16,
    num_shards=U16,
    num_traces=U16,
    remaining_us=U32,
    status=st.sampled_from(FrameStatus),
    dtype=st.just(DType.FLOAT32),
    part=st.just(0),
    parts=st.just(1),
    message_bytes=st.just(0),
)
REQUEST = Header(FrameType.REQUEST, 3, 4, 5, 0, 1, num_tokens=2, hidden_size=8, num_shards=1)


@UNHURRIED
@given(header=HEADERS, pieces=st.lists(st.binary(max_size=64), max_size=4))
def test_a_frame_round_trips(header: Header, pieces: list[bytes]):
    payload = b"".join(pieces)
    frame = decode_frame(encode_frame(header, pieces))
    assert frame.header == header._replace(message_bytes=len(payload))
    assert bytes(frame.payload) == payload


@UNHURRIED
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_by_name_and_never_crash(data: bytes):
    with pytest.raises(UnderstudyError):
        decode_frame(data)


@UNHURRIED
@given(data=st.data(), header=HEADERS, payload=st.binary(min_size=1, max_size=64))
def test_no_flipped_bit_goes_unnoticed(data: st.DataObject, header: Header, payload: bytes):
    frame = bytearray(encode_frame(header, [payload]))
    bit = data.draw(st.integers(0, len(frame) * 8 - 1))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FailedPrecondition):
        decode_frame(frame)


def test_the_header_is_eighty_bytes_as_its_docstring_says():
    frame = encode_frame(REQUEST, [b"xy"])
    assert HEADER.size == 80
    assert frame[:4] == b"AFDU"
    assert struct.unpack_from("<Q", frame, 8) == (3,)
    assert struct.unpack_from("<I", frame, 56) == (2,)


@pytest.mark.parametrize(
    ("offset", "value", "named"),
    [
        (0, b"NOPE", "magic"),
        (4, b"\x02\x00", "version is 2"),
        (6, b"\x09", "type is 9"),
        (7, b"\x63", "status is 99"),
        (44, b"\x07\x00", "dtype is 7"),
        (54, b"\x01\x00", "padding"),
        (32, b"\x05\x00", "part is 5 of 1"),
        (60, b"\xff\xff\xff\xff", "message length"),
        (72, b"\0" * 8, "checksum"),
    ],
)
def test_a_wrong_field_is_named(offset: int, value: bytes, named: str):
    frame = bytearray(encode_frame(REQUEST, [b"payload"]))
    frame[offset : offset + len(value)] = value
    with pytest.raises(FailedPrecondition, match=named):
        decode_frame(frame)


@pytest.mark.parametrize("change", [b"", b"longer"])
def test_a_wrong_length_is_named_with_both_lengths(change: bytes):
    frame = encode_frame(REQUEST, [b"payload"])
    frame = frame + change if change else frame[:-1]
    with pytest.raises(FailedPrecondition, match=f"length is {len(frame)}; expected the 87 bytes"):
        decode_frame(frame)


def test_a_frame_shorter_than_a_header_or_above_the_limit_is_refused():
    for size in (0, HEADER.size - 1, MAX_FRAME_BYTES + 1):
        with pytest.raises(FailedPrecondition, match=f"length is {size}"):
            decode_frame(b"\0" * size)


def test_a_broken_frame_still_says_which_request_it_was():
    broken = encode_frame(REQUEST, [b"payload"])[:-1]
    assert peek_header(broken) == REQUEST._replace(message_bytes=7)
    assert peek_header(b"short") is None
    assert peek_header(b"NOPE" + broken[4:]) is None


def test_one_frame_refuses_a_payload_that_needs_parts():
    with pytest.raises(FailedPrecondition, match="send the message in parts"):
        encode_frame(REQUEST, [b"\0" * (MAX_PAYLOAD_BYTES + 1)])


@pytest.mark.parametrize(
    ("size", "num_frames"),
    [(0, 1), (MAX_PAYLOAD_BYTES, 1), (MAX_PAYLOAD_BYTES + 1, 2), (3 * MAX_PAYLOAD_BYTES - 5, 3)],
)
def test_a_message_is_cut_and_put_together_again(size: int, num_frames: int):
    message = bytes(range(256)) * (size // 256) + b"\1" * (size % 256)
    frames = split_message(REQUEST, [message[:100], message[100:]])
    assert len(frames) == num_frames
    assert all(len(frame) <= MAX_FRAME_BYTES for frame in frames)
    assembler = Assembler(max_lanes=2)
    results = [assembler.add(decode_frame(frame)) for frame in frames]
    assert results[:-1] == [None] * (num_frames - 1)
    assert results[-1] is not None
    assert results[-1].payload == message
    assert results[-1].header == REQUEST._replace(message_bytes=size)


def test_a_message_above_the_limit_is_refused_before_it_is_sent():
    with pytest.raises(FailedPrecondition, match="send fewer tokens"):
        split_message(REQUEST, [b"\0" * (MAX_MESSAGE_BYTES + 1)])


def _parts(lane: int = 1, step: int = 4) -> list[bytes]:
    header = REQUEST._replace(lane=lane, step=step)
    return split_message(header, [b"\0" * (2 * MAX_PAYLOAD_BYTES + 1)])


def _feed(assembler: Assembler, *frames: bytes) -> None:
    for frame in frames:
        assembler.add(decode_frame(frame))


def test_parts_out_of_order_are_refused_and_the_lane_recovers():
    first, second, third = _parts()
    assembler = Assembler(max_lanes=2)
    with pytest.raises(FailedPrecondition, match="part 1 was due"):
        _feed(assembler, first, third)
    _feed(assembler, first, second)
    assert assembler.add(decode_frame(third)) is not None


def test_parts_of_different_messages_do_not_mix():
    with pytest.raises(FailedPrecondition, match="another message"):
        _feed(Assembler(max_lanes=2), _parts()[0], _parts(step=9)[1])


def test_parts_open_no_more_lanes_than_credits():
    with pytest.raises(FailedPrecondition, match="more than 2 lanes"):
        _feed(Assembler(max_lanes=2), *(_parts(lane)[0] for lane in range(3)))


def test_parts_whose_lengths_do_not_add_up_are_refused():
    header = REQUEST._replace(parts=2, message_bytes=10)
    frames = [encode_frame(header._replace(part=part), [b"1234"]) for part in range(2)]
    with pytest.raises(FailedPrecondition, match="add up to 8 bytes"):
        _feed(Assembler(max_lanes=2), *frames)
    header = header._replace(parts=3, message_bytes=7)
    frames = [encode_frame(header._replace(part=part), [b"12345678"]) for part in range(3)]
    with pytest.raises(FailedPrecondition, match="exceed the 7 bytes"):
        _feed(Assembler(max_lanes=2), *frames)
