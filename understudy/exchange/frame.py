"""The AFD frame: a fixed little-endian header of 80 bytes, then a payload.

    0  magic "AFDU"   4 version u16   6 type u8        7 status u8
    8  epoch u64     16 step u64     24 layer u16     26 micro-batch u16   28 lane u32
    32 part u16      34 parts u16    36 tokens u32    40 hidden size u32
    44 dtype u16     46 k u16        48 first shard u16, 50 shards u16     52 traces u16, 54 zero
    56 payload u32   60 message u32  64 remaining us u32, 68 zero u32      72 checksum u64

A request's message is trace segments, hidden (T, D), and for a mixture expert ids u16 (T, K) and
weights f32 (T, K). A reply's message is four timestamps and the partial sum (T, D), or the text of
an error. The checksum (XXH3-64) covers the header before it and the payload. Whatever is not
exactly so is refused with an error that names the field, the value and the limit.
"""

import enum
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

from xxhash import xxh3_64

from understudy.errors import FailedPrecondition

MAGIC: Final = b"AFDU"
VERSION: Final = 1
HEADER: Final = struct.Struct("<4sHBBQQHHIHHIIHHHHHHIIIIQ")
_CHECKED_BYTES: Final = HEADER.size - 8
_CHECKSUM: Final = struct.Struct("<Q")
MAX_FRAME_BYTES: Final = 512 * 1024
MAX_PAYLOAD_BYTES: Final = MAX_FRAME_BYTES - HEADER.size
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
MAX_REMAINING_US: Final = 2**32 - 1

Buffer: TypeAlias = bytes | bytearray | memoryview


class FrameType(enum.IntEnum):
    """What a frame is for."""

    REQUEST = 1
    """Asks for the partial sum of some shards of one layer."""
    REPLY = 2
    """Answers one request, with a sum or with an error."""
    TRACE_END = 3
    """Says that the attempts in its segments are over; has no reply."""


class FrameStatus(enum.IntEnum):
    """How a request fared."""

    OK = 0
    MALFORMED = 1
    """The frame is not what the format or the model's shape says; sending it again is useless."""
    STALE_EPOCH = 2
    """The placement table is older than the one the worker has seen, which `epoch` tells."""
    NOT_HELD = 3
    """The worker does not hold that layer or shard."""
    EXPIRED = 4
    """The time left had passed before the worker came to it."""
    DRAINING = 5
    """The worker takes no more frames."""
    NO_CREDIT = 6
    """The lane is beyond the credits granted, or still busy."""
    FAILED = 7
    """The worker could not compute it; another one may."""


class DType(enum.IntEnum):
    """Element type of hidden states and sums."""

    FLOAT32 = 1


ITEM_BYTES: Final = {DType.FLOAT32: 4}


class Header(NamedTuple):
    """The header's fields in wire order, magic to `remaining_us`; padding and checksum left out."""

    type: int
    epoch: int
    """Epoch of the placement table that the sender went by; a NACK tells the worker's."""
    step: int
    """Step of the attention worker."""
    layer: int
    micro_batch: int
    lane: int
    """Which of the granted credits the message occupies."""
    num_tokens: int = 0
    hidden_size: int = 0
    num_choices: int = 0
    """K: experts per token; 0 for a dense feed-forward."""
    first_shard: int = 0
    num_shards: int = 0
    """The sum covers the canonical shards [first_shard, first_shard + num_shards)."""
    num_traces: int = 0
    remaining_us: int = MAX_REMAINING_US
    """Time the sender still has, from the moment it sent."""
    status: int = FrameStatus.OK
    dtype: int = DType.FLOAT32
    part: int = 0
    parts: int = 1
    message_bytes: int = 0
    """Length of the whole message over all parts."""

    @property
    def key(self) -> tuple[int, int, int, int]:
        """What a retry on another worker repeats: epoch aside, the identity of the work."""
        return self.step, self.layer, self.micro_batch, self.first_shard


class Frame(NamedTuple):
    """A checked frame; `payload` is a view of the bytes that were decoded."""

    header: Header
    payload: memoryview


def encode_frame(header: Header, pieces: Sequence[Buffer]) -> bytes:
    """Return one frame around the concatenation of `pieces`, which are copied exactly once.

    `header.message_bytes` counts all parts; with a single part it is filled in here.
    Raises FailedPrecondition above 512 KiB (see `parts.split_message`).
    """
    payload_bytes = sum(len(piece) for piece in pieces)
    if payload_bytes > MAX_PAYLOAD_BYTES:
        raise FailedPrecondition(
            f"A frame of {payload_bytes + HEADER.size} bytes exceeds the limit of "
            f"{MAX_FRAME_BYTES}; send the message in parts."
        )
    message_bytes = payload_bytes if header.parts == 1 else header.message_bytes
    head = HEADER.pack(
        MAGIC,
        VERSION,
        header.type,
        header.status,
        header.epoch,
        header.step,
        header.layer,
        header.micro_batch,
        header.lane,
        header.part,
        header.parts,
        header.num_tokens,
        header.hidden_size,
        header.dtype,
        header.num_choices,
        header.first_shard,
        header.num_shards,
        header.num_traces,
        0,
        payload_bytes,
        message_bytes,
        header.remaining_us,
        0,
        0,
    )[:_CHECKED_BYTES]
    state = xxh3_64(head)
    for piece in pieces:
        state.update(piece)
    return b"".join((head, _CHECKSUM.pack(state.intdigest()), *pieces))


def peek_header(data: Buffer) -> Header | None:
    """Return the header of a frame that may be broken, to say which request it was; else None."""
    if len(data) < HEADER.size or bytes(data[:4]) != MAGIC:
        return None
    return _header(HEADER.unpack_from(data))


def decode_frame(data: Buffer) -> Frame:
    """Return the frame in `data` without copying the payload.

    Raises FailedPrecondition naming what is wrong: length, magic, version, type, dtype, padding,
    part numbers, checksum.
    """
    size = len(data)
    if not HEADER.size <= size <= MAX_FRAME_BYTES:
        _refuse("length", size, f"{HEADER.size} to {MAX_FRAME_BYTES} bytes")
    fields = HEADER.unpack_from(data)
    if fields[0] != MAGIC:
        _refuse("magic", fields[0], f"{MAGIC!r}")
    if fields[1] != VERSION:
        _refuse("version", fields[1], f"{VERSION}; both ends must run one release")
    payload_bytes, checksum = fields[19], fields[23]
    if payload_bytes != size - HEADER.size:
        _refuse("length", size, f"the {HEADER.size + payload_bytes} bytes that its header states")
    header = _header(fields)
    _check(header, fields[18] | fields[22], payload_bytes)
    view = memoryview(data)
    payload = view[HEADER.size :]
    state = xxh3_64(view[:_CHECKED_BYTES])
    state.update(payload)
    if state.intdigest() != checksum:
        _refuse("checksum", f"{checksum:016x}", f"{state.intdigest():016x}; bytes were damaged")
    return Frame(header, payload)


def _header(fields: tuple[int, ...]) -> Header:
    return Header(
        type=fields[2],
        status=fields[3],
        epoch=fields[4],
        step=fields[5],
        layer=fields[6],
        micro_batch=fields[7],
        lane=fields[8],
        part=fields[9],
        parts=fields[10],
        num_tokens=fields[11],
        hidden_size=fields[12],
        dtype=fields[13],
        num_choices=fields[14],
        first_shard=fields[15],
        num_shards=fields[16],
        num_traces=fields[17],
        message_bytes=fields[20],
        remaining_us=fields[21],
    )


_TYPES: Final = frozenset(FrameType)
_STATUSES: Final = frozenset(FrameStatus)
_DTYPES: Final = frozenset(DType)


def _check(header: Header, padding: int, payload_bytes: int) -> None:
    if header.type not in _TYPES:
        _refuse("type", header.type, "a frame type")
    if header.status not in _STATUSES:
        _refuse("status", header.status, "a frame status")
    if header.dtype not in _DTYPES:
        _refuse("dtype", header.dtype, "1 (float32)")
    if padding:
        _refuse("padding", padding, "0")
    if not header.part < header.parts:
        _refuse("part", f"{header.part} of {header.parts}", "a part below the number of parts")
    if header.message_bytes > MAX_MESSAGE_BYTES:
        _refuse("message length", header.message_bytes, f"at most {MAX_MESSAGE_BYTES} bytes")
    if header.parts == 1 and header.message_bytes != payload_bytes:
        _refuse("message length", header.message_bytes, f"the payload's {payload_bytes} bytes")


def _refuse(field: str, value: object, expected: str) -> None:
    raise FailedPrecondition(
        f"The AFD frame's {field} is {value}; expected {expected}.",
        {"field": field, "value": str(value)},
    )
