"""An attention worker in process on port 0, over a tiny seeded model."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from services.attention.core import EngineCore
from services.attention.loading import load_weights, serve_model
from services.attention.observers import NoObserver, StepObserver
from services.attention.servicer import SERVICE, SESSION_METHOD, AttentionServicer
from services.attention.settings import AttentionSettings
from services.attention.sharing import KvTier
from services.attention.worker import AttentionWorker
from tests.contract.attention.parts import Router, adapter_path, write_model
from understudy.api.attention.v1 import attention_pb2_grpc
from understudy.model.weights import LoadedModel
from understudy.rpc import open_channel
from understudy.serving import HealthState, RunningService, ServingSettings, start_service


@dataclass
class Running:
    """A worker, its service, and the way in."""

    worker: AttentionWorker
    service: RunningService
    health: HealthState
    registry: CollectorRegistry
    channel: grpc.aio.Channel
    stub: attention_pb2_grpc.AttentionServiceStub
    routers: list[Router] = field(default_factory=list)

    def router(self) -> Router:
        """Open a session."""
        self.routers.append(Router(self.stub))
        return self.routers[-1]

    async def check_blocks_free(self) -> None:
        """Assert, between two steps, that no sequence is left and every block is free."""
        import asyncio

        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[int, int]] = loop.create_future()

        def look(core: EngineCore) -> None:
            core.check_integrity()
            stats = core.stats()
            found = (stats.num_running + stats.num_waiting, stats.num_free_blocks)
            loop.call_soon_threadsafe(answer.set_result, found)

        self.worker.engine.call(look)
        assert await asyncio.wait_for(answer, 60) == (0, self.worker.info().num_blocks)


Start = Callable[..., Awaitable[Running]]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models") / "tiny"


@pytest.fixture(scope="session")
def loaded(model_dir: Path) -> LoadedModel:
    """The tiny model, for references."""
    return write_model(model_dir)


@pytest.fixture
async def start(model_dir: Path, loaded: LoadedModel) -> AsyncIterator[Start]:
    """Start a worker with some settings; everything is stopped after the test."""
    running: list[Running] = []

    async def start_worker(
        *,
        observer: StepObserver | None = None,
        tier: KvTier | None = None,
        **changes: object,
    ) -> Running:
        adapters = tuple(f"{name}={adapter_path(model_dir, name)}" for name in ("left", "right"))
        fields = {"num_blocks": 64, "block_size": 8, "adapters": adapters, **changes}
        settings = AttentionSettings(model=str(model_dir), model_name="tiny", **fields)
        health, registry = HealthState(is_ready=False), CollectorRegistry()
        worker = AttentionWorker(
            serve_model(settings, load_weights(settings)),
            settings,
            observer=observer or NoObserver(),
            tier=tier,
            health=health,
            registry=registry,
        )
        worker.start()
        service = await start_service(
            "attention-test",
            AttentionServicer(worker).register,
            settings=ServingSettings(),
            services=[SERVICE],
            health=health,
            on_drain=worker.hand_over,
            endless=[SESSION_METHOD],
            registry=registry,
        )
        channel = open_channel(service.address)
        stub = attention_pb2_grpc.AttentionServiceStub(channel)
        running.append(Running(worker, service, health, registry, channel, stub))
        return running[-1]

    yield start_worker
    for one in running:
        for router in one.routers:
            router.call.cancel()
        await one.channel.close(None)
        await one.service.drain(0.0)
        await one.worker.stop()
        one.worker.engine._core.check_integrity()


@pytest.fixture
async def worker(start: Start) -> Running:
    return await start()
