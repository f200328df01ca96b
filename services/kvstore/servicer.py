"""`KvStoreService`: chains and chunks between protobuf and the store."""

from collections.abc import AsyncIterator
from typing import Final

import grpc.aio
from opentelemetry import trace

from services.kvstore.chains import Chain
from services.kvstore.store import ChunkStore
from understudy.api.kvstore.v1 import kvstore_pb2, kvstore_pb2_grpc
from understudy.errors import InvalidArgument
from understudy.telemetry import names

SERVICE: Final = kvstore_pb2.DESCRIPTOR.services_by_name["KvStoreService"].full_name
CALLERS: Final = ("attention",)
"""Components that may call, as in deploy/telemetry/schema.yaml."""
SPANS: Final = {
    f"/{SERVICE}/Lookup": names.KVSTORE_LOOKUP,
    f"/{SERVICE}/Get": names.KVSTORE_GET,
    f"/{SERVICE}/Put": names.KVSTORE_PUT,
}


class KvStoreServicer(kvstore_pb2_grpc.KvStoreServiceServicer):
    """Serves attention workers."""

    def __init__(self, store: ChunkStore) -> None:
        self._store = store

    def register(self, server: grpc.aio.Server) -> None:
        """Add this service to a server."""
        kvstore_pb2_grpc.add_KvStoreServiceServicer_to_server(self, server)

    async def Lookup(  # noqa: N802
        self,
        request: kvstore_pb2.LookupRequest,
        context: object,  # noqa: ARG002
    ) -> kvstore_pb2.LookupResponse:
        """Find the longest run of the chain that is stored."""
        found = await self._store.lookup(_from_proto(request.chain))
        _note(chunks=len(request.chain.hashes), hits=found.num_stored)
        return kvstore_pb2.LookupResponse(
            num_stored=found.num_stored, num_in_memory=found.num_in_memory
        )

    async def Get(  # noqa: N802
        self,
        request: kvstore_pb2.GetRequest,
        context: object,  # noqa: ARG002
    ) -> AsyncIterator[kvstore_pb2.GetResponse]:
        """Stream chunks in order, up to the first miss."""
        num_found = size_bytes = 0
        async for hash_, data in self._store.read(_from_proto(request.chain)):
            num_found += 1
            size_bytes += len(data)
            yield kvstore_pb2.GetResponse(hash=hash_, data=data)
        _note(chunks=len(request.chain.hashes), hits=num_found, size_bytes=size_bytes)

    async def Put(  # noqa: N802
        self,
        request_iterator: AsyncIterator[kvstore_pb2.PutRequest],
        context: object,  # noqa: ARG002
    ) -> kvstore_pb2.PutResponse:
        """Keep chunks; those that are not what their chain says are refused and counted."""
        num_stored = num_refused = size_bytes = 0
        async for request in request_iterator:
            chain = _from_proto(request.chain)
            if len(chain.hashes) != 1:
                raise InvalidArgument(
                    f"A chunk is put under exactly one hash, not {len(chain.hashes)}.",
                    {"field": "chain.hashes"},
                )
            if self._store.put(chain, request.data):
                num_stored += 1
                size_bytes += len(request.data)
            else:
                num_refused += 1
        _note(chunks=num_stored + num_refused, hits=num_stored, size_bytes=size_bytes)
        return kvstore_pb2.PutResponse(num_stored=num_stored, num_refused=num_refused)


def _from_proto(chain: kvstore_pb2.Chain) -> Chain:
    return Chain.checked(chain.tenant, chain.config_digest, chain.hashes)


def _note(*, chunks: int, hits: int, size_bytes: int | None = None) -> None:
    span = trace.get_current_span()
    span.set_attributes({names.CHUNKS: chunks, names.CHUNK_HITS: hits})
    if size_bytes is not None:
        span.set_attribute(names.SIZE_BYTES, size_bytes)
