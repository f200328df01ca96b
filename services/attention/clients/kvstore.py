"""The kvstore's stub as a `ChunkStore`: chains and chunks in, counts and bytes out."""

from collections.abc import AsyncGenerator, Iterator, Sequence

import grpc

from services.attention.sharing import Chain
from understudy.api.kvstore.v1 import kvstore_pb2, kvstore_pb2_grpc
from understudy.chunks import Chunk, encode_chunk
from understudy.rpc import Peer, from_rpc_error, open_channel


class KvStoreClient:
    """Calls one kvstore; failures come out as UnderstudyErrors."""

    def __init__(self, address: str, peer: Peer | None = None) -> None:
        """Connect lazily; made on the event loop that will use it."""
        self._channel = open_channel(address, peer=peer)
        self._stub = kvstore_pb2_grpc.KvStoreServiceStub(self._channel)

    async def lookup(self, chain: Chain, timeout_s: float) -> int:
        """Return how many chunks from the head of the chain are stored."""
        try:
            response = await self._stub.Lookup(
                kvstore_pb2.LookupRequest(chain=_to_proto(chain)),
                timeout=timeout_s,
                metadata=_metadata(chain),
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return min(int(response.num_stored), len(chain.hashes))

    async def get(self, chain: Chain, timeout_s: float) -> AsyncGenerator[bytes, None]:
        """Yield encoded chunks in order, up to the first miss."""
        call = self._stub.Get(
            kvstore_pb2.GetRequest(chain=_to_proto(chain)),
            timeout=timeout_s,
            metadata=_metadata(chain),
        )
        try:
            async for response in call:
                yield response.data
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    async def put(self, entries: Sequence[tuple[Chain, Chunk]], timeout_s: float) -> int:
        """Store chunks, each under its chain of one, in order; return how many were taken."""
        try:
            response = await self._stub.Put(
                _puts(entries), timeout=timeout_s, metadata=_metadata(entries[0][0])
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return int(response.num_stored)

    async def aclose(self) -> None:
        """Close the channel."""
        await self._channel.close(None)


def _puts(entries: Sequence[tuple[Chain, Chunk]]) -> Iterator[kvstore_pb2.PutRequest]:
    for chain, chunk in entries:
        yield kvstore_pb2.PutRequest(chain=_to_proto(chain), data=encode_chunk(chunk))


def _to_proto(chain: Chain) -> kvstore_pb2.Chain:
    return kvstore_pb2.Chain(
        tenant=chain.tenant, config_digest=chain.config_digest, hashes=chain.hashes
    )


def _metadata(chain: Chain) -> tuple[tuple[str, str], ...]:
    return (("traceparent", chain.traceparent),) if chain.traceparent else ()
