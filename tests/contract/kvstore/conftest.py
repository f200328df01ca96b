"""A kvstore in this process on a real Valkey."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
from prometheus_client import CollectorRegistry

from services.kvstore.assembly import OpenedStore, open_store
from services.kvstore.servicer import SERVICE, KvStoreServicer
from services.kvstore.settings import KvStoreSettings
from tests.contract.kvstore.parts import DIGEST, TENANT, Valkey, encoded, to_proto
from understudy.api.kvstore.v1 import kvstore_pb2, kvstore_pb2_grpc
from understudy.rpc import open_channel
from understudy.serving import ServingSettings, start_service

TIMEOUT_S = 30.0


@dataclass
class Running:
    """A kvstore that serves, with the calls an attention worker makes."""

    opened: OpenedStore
    stub: kvstore_pb2_grpc.KvStoreServiceStub
    registry: CollectorRegistry

    async def put(
        self, hashes: Sequence[bytes], data: Sequence[bytes] | None = None, tenant: str = TENANT
    ) -> kvstore_pb2.PutResponse:
        """Put chunks and wait until Redis has them."""
        chunks = encoded(hashes) if data is None else data
        requests = [
            kvstore_pb2.PutRequest(chain=to_proto([hash_], tenant=tenant), data=chunk)
            for hash_, chunk in zip(hashes, chunks, strict=True)
        ]
        response = await self.stub.Put(iter(requests), timeout=TIMEOUT_S)
        if self.opened.redis is not None:
            await self.opened.redis.flush()
        return response

    async def lookup(self, hashes: Sequence[bytes], **chain: object) -> tuple[int, int]:
        request = kvstore_pb2.LookupRequest(chain=to_proto(hashes, **chain))
        found = await self.stub.Lookup(request, timeout=TIMEOUT_S)
        return found.num_stored, found.num_in_memory

    async def get(self, hashes: Sequence[bytes], **chain: object) -> list[bytes]:
        request = kvstore_pb2.GetRequest(chain=to_proto(hashes, **chain))
        return [answer.data async for answer in self.stub.Get(request, timeout=TIMEOUT_S)]

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"understudy_kvstore_{name}", labels) or 0.0


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start kvstores that share nothing but the Redis they are given."""
    async with AsyncExitStack() as stack:

        async def start_kvstore(**settings: object) -> Running:
            registry = CollectorRegistry()
            filled = KvStoreSettings(**{"redis_timeout_s": 10.0, **settings})
            opened = await stack.enter_async_context(open_store(filled, registry))
            service = await start_service(
                "kvstore",
                KvStoreServicer(opened.store).register,
                settings=ServingSettings(),
                services=[SERVICE],
                registry=registry,
            )
            stack.push_async_callback(service.drain, 0.0)
            channel = await stack.enter_async_context(open_channel(service.address))
            return Running(opened, kvstore_pb2_grpc.KvStoreServiceStub(channel), registry)

        yield start_kvstore


@pytest.fixture
def digest() -> bytes:
    return DIGEST
