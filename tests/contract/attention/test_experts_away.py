"""A disaggregated worker whose expert workers are all gone: it says so, and keeps its promises."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.attention.assembly import open_worker
from services.attention.servicer import SERVICE, SESSION_METHOD, AttentionServicer
from services.attention.settings import AttentionSettings
from services.attention.worker import AttentionWorker
from services.controller.tables import Tables
from tests.contract.attention.parts import WAIT_S, Router, submit
from tests.contract.experts.parts import POOL, Fleet
from understudy.api.attention.v1 import attention_pb2_grpc
from understudy.errors import DeadlineExceeded
from understudy.model.weights import LoadedModel
from understudy.rpc import open_channel
from understudy.serving import HealthState, ServingSettings, start_service


@dataclass
class Split:
    """An attention worker and the fleet that computes its feed-forwards."""

    worker: AttentionWorker
    fleet: Fleet
    tables: Tables
    health: HealthState
    registry: CollectorRegistry
    router: Router

    async def take_experts_away(self) -> None:
        """Kill every expert worker and wait until that is known."""
        for expert in self.fleet.workers:
            await expert.kill()
        await until(lambda: not self.health.is_ready)

    def ended(self, reason: str) -> float | None:
        return self.registry.get_sample_value(
            "understudy_attention_ended_sequences_total", {"reason": reason}
        )


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something is true."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def split(stack: AsyncExitStack, model_dir: Path, loaded: LoadedModel) -> Split:
    fleet = Fleet(stack)
    await fleet.add_worker(loaded)
    _, tables, controller = await fleet.control()
    settings = AttentionSettings(
        model=str(model_dir),
        model_name="tiny",
        pool=POOL,
        ffn="remote",
        placement=controller,
        compute="reference",  # as the fixture loaded the experts
        num_blocks=64,
        block_size=8,
        threads=1,
    )
    health, registry = HealthState(is_ready=False), CollectorRegistry()
    opened = open_worker(settings, health=health, registry=registry)
    worker = await stack.enter_async_context(opened)
    service = await start_service(
        "attention-test",
        AttentionServicer(worker).register,
        settings=ServingSettings(),
        services=[SERVICE],
        health=health,
        endless=[SESSION_METHOD],
        registry=registry,
    )
    stack.push_async_callback(service.drain, 0.0)
    channel = await stack.enter_async_context(open_channel(service.address))
    router = Router(attention_pb2_grpc.AttentionServiceStub(channel))
    stack.callback(router.call.cancel)
    return Split(worker, fleet, tables, health, registry, router)


async def test_worker_without_experts_is_unready_until_they_are_back(
    split: Split, loaded: LoadedModel
):
    await until(lambda: split.health.is_ready)
    await split.take_experts_away()
    assert split.health.reason == f"expert workers of pool {POOL} are away"
    newcomer = await split.fleet.add_worker(loaded)
    _, tables, _ = await split.fleet.control(newcomer.address)
    table = tables.current(POOL)
    assert table is not None
    await split.tables.update(POOL, [share.holding for share in table.shares])
    await until(lambda: split.health.is_ready)
    assert len((await split.router.run(submit(1, [65], max_tokens=3))).tokens) == 3


async def test_draining_worker_stays_unready_when_experts_come_back(split: Split):
    await split.worker.drain(0.0)
    split.worker.note_experts(has_experts=False)
    split.worker.note_experts(has_experts=True)
    assert not split.health.is_ready
    assert split.health.reason == "draining"


async def test_deadline_is_kept_while_nobody_computes(split: Split):
    await split.router.run(submit(1, [65], max_tokens=1))
    await split.take_experts_away()
    output = await split.router.run(submit(2, [65], time_left_s=1.0))
    assert isinstance(output.error, DeadlineExceeded)


async def test_cancel_is_heard_while_nobody_computes(split: Split):
    await split.router.run(submit(1, [65], max_tokens=1))
    await split.take_experts_away()
    await split.router.send(submit(2, [65]))
    await until(lambda: split.worker.engine._core.stats().num_running == 1)
    await split.router.cancel(2)
    await until(lambda: split.ended("cancelled") == 1)
    assert split.ended("aborted") is None
