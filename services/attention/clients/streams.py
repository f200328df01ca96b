"""The raw AFD stream to one expert worker, on the synchronous gRPC stack."""

from collections.abc import Iterator
from queue import SimpleQueue
from typing import Final, cast

import grpc

from understudy.rpc import WITHOUT_POLICY, Peer, open_sync_channel

EXCHANGE: Final = "/understudy.api.experts.v1.ExpertsService/Exchange"


class ExchangeStream:
    """A `Transport` over one open Exchange call."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        open_stream = channel.stream_stream(EXCHANGE, None, None)
        self._call = open_stream(cast("Iterator[object]", iter(self._outbox.get, None)))

    def send(self, frames: list[bytes]) -> None:
        """Queue frames for writing, in order."""
        for frame in frames:
            self._outbox.put(frame)

    def reset(self) -> None:
        """Close the stream."""
        self._outbox.put(None)
        self._call.cancel()  # type: ignore[no-untyped-call]

    def __iter__(self) -> Iterator[bytes]:
        return cast("Iterator[bytes]", iter(self._call))


def open_exchange(address: str, peer: Peer | None = None) -> grpc.Channel:
    """Return a channel without retries and health checks: a break must show at once."""
    return open_sync_channel(address, options=WITHOUT_POLICY, peer=peer)
