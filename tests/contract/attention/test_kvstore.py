"""The worker and a kvstore: prefixes outlive the worker; a kvstore that dies costs hits only."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.attention.assembly import open_worker
from services.attention.servicer import SERVICE, SESSION_METHOD, AttentionServicer
from services.attention.settings import AttentionSettings
from services.attention.worker import AttentionWorker
from tests.contract.attention.parts import ROOT, WAIT_S, Output, Router, adapter_path, submit
from understudy.api.attention.v1 import attention_pb2_grpc
from understudy.api.kvstore.v1 import kvstore_pb2, kvstore_pb2_grpc
from understudy.errors import FailedPrecondition, Unavailable
from understudy.model.weights import LoadedModel
from understudy.rpc import open_channel
from understudy.serving import HealthState, RunningService, ServingSettings, start_service

KVSTORE = "understudy.api.kvstore.v1.KvStoreService"
PROMPT = list(range(40, 90))
NUM_FULL_BLOCKS = 6


@dataclass
class FakeKvStore(kvstore_pb2_grpc.KvStoreServiceServicer):
    """Chunks in a dictionary."""

    chunks: dict[tuple[str, bytes, bytes], bytes] = field(default_factory=dict)
    is_away: bool = False
    stored: asyncio.Event = field(default_factory=asyncio.Event)

    def _run(self, chain: kvstore_pb2.Chain) -> list[tuple[str, bytes, bytes]]:
        if self.is_away:
            raise Unavailable("The kvstore is away.")
        run = []
        for chunk_hash in chain.hashes:
            key = (chain.tenant, chain.config_digest, chunk_hash)
            if key not in self.chunks:
                break
            run.append(key)
        return run

    async def Lookup(self, request, context):  # noqa: N802
        num_stored = len(self._run(request.chain))
        return kvstore_pb2.LookupResponse(num_stored=num_stored, num_in_memory=num_stored)

    async def Get(self, request, context):  # noqa: N802
        for key in self._run(request.chain):
            yield kvstore_pb2.GetResponse(hash=key[2], data=self.chunks[key])

    async def Put(self, request_iterator, context):  # noqa: N802
        count = 0
        async for request in request_iterator:
            self._run(kvstore_pb2.Chain())
            chain = request.chain
            self.chunks[chain.tenant, chain.config_digest, chain.hashes[0]] = request.data
            count += 1
        self.stored.set()
        return kvstore_pb2.PutResponse(num_stored=count)


@dataclass
class Served:
    """A worker with its kvstore settings, serving."""

    worker: AttentionWorker
    router: Router

    async def run(self, sequence_id: int, **fields: object) -> Output:
        return await self.router.run(
            submit(sequence_id, PROMPT, max_tokens=4, kv_root=ROOT, **fields)
        )


@pytest.fixture
def fake() -> FakeKvStore:
    return FakeKvStore()


@pytest.fixture
async def kvstore(fake: FakeKvStore) -> AsyncIterator[RunningService]:
    service = await start_service(
        "kvstore-test",
        lambda server: kvstore_pb2_grpc.add_KvStoreServiceServicer_to_server(fake, server),
        settings=ServingSettings(),
        services=[KVSTORE],
        health=HealthState(),
        registry=CollectorRegistry(),
    )
    yield service
    await service.drain(0.0)


async def with_worker(
    model_dir: Path, address: str, use: Callable[[Served], object], **changes: object
) -> None:
    """Open a worker from its settings, serve it, and let `use` talk to it."""
    settings = AttentionSettings(
        model=str(model_dir),
        model_name="tiny",
        adapters=(f"left={adapter_path(model_dir, 'left').parent}",),
        block_size=8,
        kvstore=address,
        kvstore_timeout_s=30.0,
        threads=1,
        **changes,
    )
    health, registry = HealthState(is_ready=False), CollectorRegistry()
    async with open_worker(settings, health=health, registry=registry) as worker:
        assert health.is_ready
        service = await start_service(
            "attention-test",
            AttentionServicer(worker).register,
            settings=ServingSettings(),
            services=[SERVICE],
            health=health,
            endless=[SESSION_METHOD],
            registry=registry,
        )
        channel = open_channel(service.address)
        router = Router(attention_pb2_grpc.AttentionServiceStub(channel))
        try:
            await use(Served(worker, router))
        finally:
            router.call.cancel()
            await channel.close(None)
            await service.drain(0.0)


async def test_restarted_worker_serves_a_shared_prefix_from_the_store(
    model_dir: Path, loaded: LoadedModel, kvstore: RunningService, fake: FakeKvStore
):
    outputs: list[Output] = []

    async def warm(served: Served) -> None:
        outputs.append(await served.run(1))
        assert fake.chunks == {}
        outputs.append(await served.run(2))
        await asyncio.wait_for(fake.stored.wait(), WAIT_S)

    async def use(served: Served) -> None:
        outputs.append(await served.run(1))
        outputs.append(await served.run(2, adapter="left"))

    await with_worker(model_dir, kvstore.address, warm)
    assert len(fake.chunks) == NUM_FULL_BLOCKS
    await with_worker(model_dir, kvstore.address, use)
    first, local, remote, adapted = outputs
    assert first.finished.local_cached_tokens == first.finished.remote_cached_tokens == 0
    assert local.finished.local_cached_tokens == NUM_FULL_BLOCKS * 8
    assert remote.finished.remote_cached_tokens == NUM_FULL_BLOCKS * 8
    assert remote.finished.computed_positions == len(PROMPT) - NUM_FULL_BLOCKS * 8 + 3
    assert first.tokens == local.tokens == remote.tokens
    assert adapted.finished.remote_cached_tokens == adapted.finished.local_cached_tokens == 0


async def test_damaged_chunk_is_recomputed(
    model_dir: Path, loaded: LoadedModel, kvstore: RunningService, fake: FakeKvStore
):
    outputs: list[Output] = []

    async def warm(served: Served) -> None:
        outputs.append(await served.run(1))
        await asyncio.wait_for(fake.stored.wait(), WAIT_S)

    async def use(served: Served) -> None:
        outputs.append(await served.run(1))

    await with_worker(model_dir, kvstore.address, warm, kvstore_write_touches=1)
    key = list(fake.chunks)[2]  # written tail first
    fake.chunks[key] = fake.chunks[key][:-1] + bytes([fake.chunks[key][-1] ^ 1])
    await with_worker(model_dir, kvstore.address, use)
    assert outputs[1].finished.remote_cached_tokens == (NUM_FULL_BLOCKS - 3) * 8
    assert outputs[0].tokens == outputs[1].tokens


@pytest.mark.parametrize("is_listening", [True, False])
async def test_kvstore_that_is_away_costs_hits_only(
    model_dir: Path,
    loaded: LoadedModel,
    kvstore: RunningService,
    fake: FakeKvStore,
    is_listening: bool,
):
    fake.is_away = True
    if not is_listening:
        await kvstore.drain(0.0)

    async def use(served: Served) -> None:
        for sequence_id in range(4):
            output = await served.run(sequence_id, adapter=["", "left"][sequence_id % 2])
            assert output.error is None
            assert output.finished.remote_cached_tokens == 0

    await with_worker(model_dir, kvstore.address, use)


async def test_no_file_at_the_model_path_is_named(model_dir: Path):
    settings = AttentionSettings(model=str(model_dir / "nowhere"), model_name="tiny")
    health = HealthState(is_ready=False)
    with pytest.raises(FailedPrecondition, match="no model at"):
        async with open_worker(settings, health=health, registry=CollectorRegistry()):
            pass
    assert not health.is_ready
