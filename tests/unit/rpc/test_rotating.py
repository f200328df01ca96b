"""Channels that change their credentials keep nothing of what has ended."""

import gc

import grpc

from understudy.rpc.peers import Peer
from understudy.rpc.rotating import RotatingChannel

METHOD = "/understudy.probe.v1.Probe/Ask"


class Wire:
    """A channel whose calls are answered at once."""

    def __init__(self) -> None:
        self.num_methods = 0

    def unary_unary(self, *_: object) -> object:
        self.num_methods += 1
        return lambda request: request

    def close(self) -> None:
        """Hang up."""


def test_a_stub_for_each_call_leaves_nothing_behind() -> None:
    wire, credentials = Wire(), grpc.ssl_channel_credentials()
    channel = RotatingChannel(Peer("probe.test", lambda: credentials), lambda _: wire)  # type: ignore[arg-type, return-value]
    for index in range(100):
        assert channel.unary_unary(METHOD)(index) == index
    gc.collect()
    assert wire.num_methods == 100
    assert len(channel._generations._current.methods) == 0
    kept = channel.unary_unary(METHOD)
    assert [kept(1), kept(2)] == [1, 2]
    assert wire.num_methods == 101
