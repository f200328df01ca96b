"""Reads pods: their Prometheus exposition over HTTP, and `Info` of attention workers over gRPC."""

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import grpc
from prometheus_client.parser import text_string_to_metric_families

from services.controller.scaling.windows import Info, Series
from understudy.api.attention.v1 import attention_pb2, attention_pb2_grpc
from understudy.errors import Unavailable
from understudy.rpc import WITHOUT_POLICY, Peer, from_rpc_error, open_channel

if TYPE_CHECKING:
    from aiohttp import ClientSession

MAX_BYTES: Final = 4 * 1024 * 1024
"""Largest exposition that is read."""
MAX_CHANNELS: Final = 1024
_OK: Final = 200


class PodReader:
    """A `Reader` with one HTTP session, and one channel per attention worker."""

    def __init__(self, timeout_s: float, peer: Peer | None = None) -> None:
        self._timeout_s = timeout_s
        self._peer = peer
        self._session: ClientSession | None = None
        self._channels: dict[str, tuple[grpc.aio.Channel, AsyncExitStack]] = {}

    async def metrics(self, address: str) -> Series:
        """Return all samples of http://address/metrics."""
        from aiohttp import ClientError, ClientSession, ClientTimeout

        if self._session is None:
            self._session = ClientSession(timeout=ClientTimeout(total=self._timeout_s))
        try:
            async with self._session.get(f"http://{address}/metrics") as response:
                if response.status != _OK:
                    raise Unavailable(f"http://{address}/metrics answered {response.status}.")
                text = await response.content.read(MAX_BYTES)
                while part := await response.content.read(MAX_BYTES - len(text) + 1):
                    text += part
                    if len(text) > MAX_BYTES:
                        raise Unavailable(
                            f"http://{address}/metrics is longer than {MAX_BYTES} bytes."
                        )
            return parse(text.decode("utf-8"))
        except (ClientError, OSError, TimeoutError, ValueError) as error:
            raise Unavailable(f"http://{address}/metrics cannot be read: {error}") from error

    async def info(self, address: str) -> Info:
        """Return what an attention worker says of itself."""
        channel = await self._channel(address)
        try:
            found = await attention_pb2_grpc.AttentionServiceStub(channel).Info(
                attention_pb2.InfoRequest(), timeout=self._timeout_s
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        taken = found.num_blocks - found.num_free_blocks
        occupancy = taken / found.num_blocks if found.num_blocks else 0.0
        return Info(found.num_running, found.num_waiting, max(occupancy, 0.0))

    async def aclose(self) -> None:
        """Hang up."""
        if self._session is not None:
            await self._session.close()
        for _, stack in self._channels.values():
            await stack.aclose()

    async def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            while len(self._channels) >= MAX_CHANNELS:  # pods come and go, the oldest are gone
                _, oldest = self._channels.pop(next(iter(self._channels)))
                await oldest.aclose()
            stack = AsyncExitStack()
            channel = await stack.enter_async_context(
                open_channel(address, options=WITHOUT_POLICY, peer=self._peer)
            )
            self._channels[address] = channel, stack
        return self._channels[address][0]


def parse(text: str) -> Series:
    """Return the samples of an exposition. Raises ValueError for what is none."""
    return {
        (sample.name, frozenset(sample.labels.items())): float(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
