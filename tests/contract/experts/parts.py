"""Expert workers and a controller in this process, around tiny seeded models."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

import torch
from prometheus_client import CollectorRegistry
from torch import Tensor

from services.attention.clients import RemoteExperts
from services.controller.clients.experts import GrpcProber
from services.controller.metrics import ControllerMetrics
from services.controller.placement import PoolMembers
from services.controller.probing import PoolKeeper
from services.controller.servicer import SERVICE as CONTROLLER
from services.controller.servicer import WATCH, ControllerServicer
from services.controller.tables import Tables
from services.experts.holdings import Holdings
from services.experts.metrics import ExpertsMetrics
from services.experts.servicer import EXCHANGE, SERVICE, ExpertsServicer
from services.experts.spans import ComputeSpan, SpanAggregator
from services.experts.worker import ExpertWorker
from understudy.model.attention import PackedCausal
from understudy.model.config import ModelConfig
from understudy.model.transformer import Transformer
from understudy.model.weights import LoadedModel, random_weights
from understudy.serving import HealthState, RunningService, ServingSettings, start_service

DENSE = ModelConfig(
    family="llama",
    vocab_size=97,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_size=48,
    max_positions=4096,
    num_ffn_shards=4,
)
MIXTURE = replace(DENSE, family="mixtral", num_experts=4, num_experts_per_token=2, num_ffn_shards=2)
POOL = "llm"


def seeded(config: ModelConfig, digest: str = "ab" * 32) -> LoadedModel:
    return LoadedModel(config, random_weights(config, seed=7, deviation=0.3), digest)


def forward(model: LoadedModel, experts: RemoteExperts | None, tokens: Tensor) -> Tensor:
    """Return the final hidden states (T, D) of one sequence, computed where `experts` says."""
    transformer = Transformer(model.config, model.weights, experts)
    length = tokens.shape[0]
    with torch.inference_mode():
        return transformer.forward(tokens, torch.arange(length), PackedCausal([length]))


def until(condition: Callable[[], bool]) -> None:
    """Wait until another thread has made the condition true."""
    pause = threading.Event()
    for _ in range(6000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("the condition did not come true within a minute")


@dataclass
class Worker:
    """An expert worker that runs, and the spans it has written."""

    worker: ExpertWorker
    service: RunningService
    health: HealthState
    spans: list[ComputeSpan]
    registry: CollectorRegistry

    @property
    def address(self) -> str:
        return self.service.address

    async def kill(self) -> None:
        """End every connection at once, as a crash would."""
        await self.service.server.stop(None)


@dataclass
class Fleet:
    """Expert workers, a controller, and clients that are closed after the test."""

    stack: AsyncExitStack
    workers: list[Worker] = field(default_factory=list)

    async def add_worker(self, model: LoadedModel, *, num_credits: int = 4, **holding) -> Worker:
        spans: list[ComputeSpan] = []
        registry, health = CollectorRegistry(), HealthState()
        worker = ExpertWorker(
            Holdings.take(model, **holding),
            num_credits=num_credits,
            metrics=ExpertsMetrics.on(registry),
            spans=SpanAggregator(model.config.num_layers, spans.append),
        )
        worker.start()
        service = await start_service(
            "experts",
            ExpertsServicer(worker).register,
            settings=ServingSettings(),
            services=[SERVICE],
            endless=[EXCHANGE],
            registry=registry,
            health=health,
        )
        self.stack.push_async_callback(service.drain, 0.0)
        self.stack.callback(worker.close)
        self.workers.append(Worker(worker, service, health, spans, registry))
        return self.workers[-1]

    async def control(self, *addresses: str) -> tuple[PoolKeeper, Tables, str]:
        """Start a controller of the given workers, by default all; return its keeper."""
        tables, metrics = Tables([POOL]), ControllerMetrics.on(CollectorRegistry())
        members = PoolMembers(POOL, addresses or tuple(w.address for w in self.workers))
        prober = GrpcProber(timeout_s=5.0)
        self.stack.push_async_callback(prober.aclose)
        keeper = PoolKeeper(members, prober, tables, metrics)
        service = await start_service(
            "controller",
            ControllerServicer(tables, metrics).register,
            settings=ServingSettings(),
            services=[CONTROLLER],
            endless=[WATCH],
        )
        self.stack.push_async_callback(service.drain, 0.0)
        await keeper.look()
        return keeper, tables, service.address

    async def connect(self, model: LoadedModel, controller: str, **options) -> RemoteExperts:
        experts = RemoteExperts(model.config, model.ffn_digest, controller, POOL, **options)
        self.stack.push_async_callback(asyncio.to_thread, experts.close)
        await asyncio.to_thread(experts.start, 60.0)
        await asyncio.to_thread(until, lambda: experts.num_connected == len(self.workers))
        return experts
