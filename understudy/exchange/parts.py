"""Messages above one frame: cut into parts on one side, put together again on the other."""

from collections.abc import Sequence
from typing import Final

from understudy.errors import FailedPrecondition
from understudy.exchange.frame import (
    MAX_MESSAGE_BYTES,
    MAX_PAYLOAD_BYTES,
    Buffer,
    Frame,
    Header,
    encode_frame,
)

_PART_FIELDS: Final = {"part": 0}


def split_message(header: Header, pieces: Sequence[Buffer]) -> list[bytes]:
    """Return the frames, each at most 512 KiB, that carry the concatenation of `pieces`.

    Raises FailedPrecondition above 16 MiB.
    """
    size = sum(len(piece) for piece in pieces)
    if size <= MAX_PAYLOAD_BYTES:
        return [encode_frame(header, pieces)]
    if size > MAX_MESSAGE_BYTES:
        raise FailedPrecondition(
            f"A message of {size} bytes exceeds the limit of {MAX_MESSAGE_BYTES}; "
            "send fewer tokens in one step."
        )
    message = memoryview(b"".join(pieces))
    starts = range(0, size, MAX_PAYLOAD_BYTES)
    return [
        encode_frame(
            header._replace(part=part, parts=len(starts), message_bytes=size),
            [message[start : start + MAX_PAYLOAD_BYTES]],
        )
        for part, start in enumerate(starts)
    ]


class Assembler:
    """Collects the parts of messages, at most one message per lane.

    Parts of a lane arrive in order (a stream keeps order); anything else is refused and the lane
    forgotten. Memory is held for bytes that arrived, never for bytes that were announced.
    """

    def __init__(self, max_lanes: int) -> None:
        self._max_lanes = max_lanes
        self._partial: dict[int, list[Frame]] = {}

    def add(self, frame: Frame) -> Frame | None:
        """Return the whole message once its last part is here, None before.

        Raises FailedPrecondition naming the lane when a part is out of order, belongs to another
        message, makes the length wrong, or opens more lanes than allowed.
        """
        header = frame.header
        if header.parts == 1:
            self._partial.pop(header.lane, None)
            return frame
        collected = self._partial.pop(header.lane, [])
        self._check(collected, header)
        collected.append(frame)
        if header.part + 1 < header.parts:
            self._partial[header.lane] = collected
            return None
        payload = b"".join(part.payload for part in collected)
        if len(payload) != header.message_bytes:
            raise FailedPrecondition(
                f"The parts on lane {header.lane} add up to {len(payload)} bytes; "
                f"their headers state {header.message_bytes}."
            )
        return Frame(header._replace(part=0, parts=1), memoryview(payload))

    def _check(self, collected: list[Frame], header: Header) -> None:
        if header.part != len(collected):
            raise FailedPrecondition(
                f"Part {header.part} came on lane {header.lane}; part {len(collected)} was due."
            )
        if collected and collected[0].header != header._replace(**_PART_FIELDS):
            raise FailedPrecondition(
                f"Part {header.part} on lane {header.lane} belongs to another message."
            )
        if len(self._partial) >= self._max_lanes:
            raise FailedPrecondition(
                f"Parts on lane {header.lane} would open more than {self._max_lanes} lanes."
            )
        if sum(len(part.payload) for part in collected) > header.message_bytes:
            raise FailedPrecondition(
                f"The parts on lane {header.lane} exceed the {header.message_bytes} bytes stated."
            )
