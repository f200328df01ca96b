"""A dispatcher with a clock of its own and fake expert workers, for the tests of links."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from services.attention.dispatch import Call, Placement, Replica
from services.attention.links import Dispatcher, Link
from understudy.exchange.frame import (
    FrameStatus,
    FrameType,
    Header,
    decode_frame,
    encode_frame,
)
from understudy.exchange.tensors import ServerTimes, error_pieces, reply_pieces, request_pieces

HIDDEN = torch.ones(2, 4)
SHARDS = 3


def replica(address: str, shards: set[int], preferred: set[int] = frozenset()) -> Replica:
    return Replica(address, range(2), frozenset(shards), frozenset(preferred))


def partial(shard: int) -> Tensor:
    """A partial sum whose addition is not associative: the order shows."""
    return torch.full((2, 4), (1e8, -1e8, 1.0)[shard])


FUSED = (partial(0) + partial(1)) + partial(2)


@dataclass
class FakeStream:
    """Collects what is sent; the test answers."""

    sent: list[bytes] = field(default_factory=list)
    is_reset: bool = False

    def send(self, frames: list[bytes]) -> None:
        self.sent.extend(frames)

    def reset(self) -> None:
        self.is_reset = True

    @property
    def last(self) -> Header:
        return decode_frame(self.sent[-1]).header


def answer(header: Header, status: FrameStatus = FrameStatus.OK, **changes: int) -> bytes:
    """What a worker replies to a request."""
    reply = header._replace(type=FrameType.REPLY, status=status, message_bytes=0, **changes)
    if status != FrameStatus.OK:
        return encode_frame(reply._replace(num_tokens=0), error_pieces("Because."))
    total = partial(header.first_shard)
    for shard in range(header.first_shard + 1, header.first_shard + header.num_shards):
        total = total + partial(shard)
    return encode_frame(reply, reply_pieces(ServerTimes(1, 2, 3, 4), total))


class Rig:
    """A dispatcher with a clock and fake workers `a` and `b` that hold everything."""

    def __init__(self, **options: float) -> None:
        self.now_s = 0.0
        settings = {"frame_timeout_s": 5.0, "retry_window_s": 10.0, **options}
        self.dispatcher = Dispatcher(clock_s=lambda: self.now_s, **settings)
        self.dispatcher.place(
            Placement(7, (replica("a", {0, 1, 2}, {0}), replica("b", {0, 1, 2}, {1, 2})))
        )
        self.streams: dict[str, FakeStream] = {}
        self.links: dict[str, Link] = {}

    def connect(self, address: str, num_credits: int = 4) -> FakeStream:
        stream = self.streams[address] = FakeStream()
        self.links[address] = self.dispatcher.connected(address, stream, num_credits)
        return stream

    def start(self, layer: int = 0) -> Call:
        header = Header(FrameType.REQUEST, 0, 1, layer, 0, 0, 2, 4)
        call = Call(header, request_pieces((), HIDDEN, None, None), set(range(SHARDS)))
        self.dispatcher.start(call)
        return call

    def reply(self, address: str, status: FrameStatus = FrameStatus.OK, **changes: int) -> None:
        """Answer everything that `address` was sent so far."""
        stream = self.streams[address]
        sent, stream.sent = stream.sent, []
        for message in sent:
            reply = answer(decode_frame(message).header, status, **changes)
            self.dispatcher.receive(self.links[address], reply)
