"""The placement as attention workers get it, across starts of the controller."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from services.controller.clients.experts import GrpcProber
from services.controller.metrics import ControllerMetrics
from services.controller.placement import Holding, PoolMembers
from services.controller.probing import MAX_FAILURES, PoolKeeper, announce
from services.controller.servicer import SERVICE, WATCH, ControllerServicer
from services.controller.tables import Tables
from understudy.api.controller.v1 import controller_pb2, controller_pb2_grpc
from understudy.errors import NotFound, Unavailable
from understudy.rpc import WITHOUT_POLICY, from_rpc_error, open_channel
from understudy.serving import HealthState, RunningService, ServingSettings, start_service

POOL = "llm"
WAIT_S = 60.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ANSWERS = {
    address: Holding(address, b"d" * 32, range(3), (0, 1, 2, 3)) for address in ("a:1", "b:1")
}


@dataclass
class FakeProber:
    """Expert workers that answer what the test says."""

    answers: dict[str, Holding | None] = field(default_factory=lambda: dict(ANSWERS))
    unreachable: set[str] = field(default_factory=set)

    async def probe(self, address: str) -> Holding | None:
        if address in self.unreachable:
            raise Unavailable("Nobody there.")
        return self.answers[address]


@dataclass
class Controller:
    """A controller whose looks the test decides on."""

    keeper: PoolKeeper
    service: RunningService
    registry: CollectorRegistry
    announcing: asyncio.Task[None]
    channel: grpc.aio.Channel

    def watch(self, pool: str = POOL):
        stub = controller_pb2_grpc.ControllerServiceStub(self.channel)
        return stub.WatchPlacement(controller_pb2.WatchPlacementRequest(pool=pool))

    async def health(self) -> int:
        check = health_pb2_grpc.HealthStub(self.channel).Check(
            health_pb2.HealthCheckRequest(), timeout=WAIT_S
        )
        return (await check).status


@pytest.fixture
def prober() -> FakeProber:
    return FakeProber()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def start(stack: AsyncExitStack, prober: FakeProber) -> Controller:
    """Start a controller that has not looked yet."""
    registry, tables = CollectorRegistry(), Tables([POOL])
    metrics, health = ControllerMetrics.on(registry), HealthState(is_ready=False)
    service = await start_service(
        "controller",
        ControllerServicer(tables, metrics).register,
        settings=ServingSettings(),
        services=[SERVICE],
        endless=[WATCH],
        health=health,
        registry=registry,
    )
    stack.push_async_callback(service.drain, 0.0)
    announcing = asyncio.create_task(announce(tables, health))
    stack.callback(announcing.cancel)
    channel = await stack.enter_async_context(open_channel(service.address, options=WITHOUT_POLICY))
    keeper = PoolKeeper(PoolMembers(POOL, tuple(prober.answers)), prober, tables, metrics)
    return Controller(keeper, service, registry, announcing, channel)


async def next_table(watching) -> controller_pb2.Placement:
    return (await asyncio.wait_for(watching.read(), WAIT_S)).placement


def preferred(table: controller_pb2.Placement) -> dict[str, list[int]]:
    return {replica.address: list(replica.preferred_expert_ids) for replica in table.replicas}


async def until_watched(controller: Controller) -> None:
    """Wait until a watcher of the controller has arrived."""
    async with asyncio.timeout(WAIT_S):
        while not controller.registry.get_sample_value("understudy_controller_watchers"):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_watcher_gets_the_table_and_each_newer_one(stack: AsyncExitStack, prober: FakeProber):
    controller = await start(stack, prober)
    await controller.keeper.look()
    watching = controller.watch()
    first = await next_table(watching)
    assert first.pool == POOL
    assert preferred(first) == {"a:1": [0, 1], "b:1": [2, 3]}
    replica = first.replicas[0]
    assert (replica.first_layer, replica.num_layers) == (0, 3)
    assert list(replica.expert_ids) == [0, 1, 2, 3]
    prober.answers["a:1"] = None
    await controller.keeper.look()
    second = await next_table(watching)
    assert second.epoch > first.epoch
    assert preferred(second) == {"b:1": [0, 1, 2, 3]}


async def test_nothing_is_published_and_health_is_unready_before_the_first_look(
    stack: AsyncExitStack, prober: FakeProber
):
    controller = await start(stack, prober)
    watching = controller.watch()
    await until_watched(controller)
    assert await controller.health() == NOT_SERVING
    await controller.keeper.look()
    assert len((await next_table(watching)).replicas) == 2
    await asyncio.wait_for(controller.announcing, WAIT_S)
    assert await controller.health() == SERVING


async def test_restarted_controller_never_takes_the_placement_away(
    stack: AsyncExitStack, prober: FakeProber
):
    before = await start(stack, prober)
    await before.keeper.look()
    table = await next_table(before.watch())
    await before.service.drain(0.0)
    after = await start(stack, prober)
    watching = after.watch()
    await until_watched(after)
    prober.unreachable = {"a:1"}
    await after.keeper.look()
    prober.unreachable = set()
    await after.keeper.look()
    again = await next_table(watching)
    assert preferred(again) == preferred(table)
    assert again.epoch > table.epoch


async def test_pool_whose_workers_are_all_gone_gets_an_empty_table_in_the_end(
    stack: AsyncExitStack, prober: FakeProber
):
    controller = await start(stack, prober)
    prober.unreachable = {"a:1", "b:1"}
    watching = controller.watch()
    await controller.keeper.look()
    await controller.keeper.look()
    assert list((await next_table(watching)).replicas) == []


async def test_unknown_pool_is_not_found(stack: AsyncExitStack, prober: FakeProber):
    controller = await start(stack, prober)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await asyncio.wait_for(controller.watch("vision").read(), WAIT_S)
    assert isinstance(from_rpc_error(failure.value), NotFound)
    assert "'vision' has no expert workers here; known: llm" in str(failure.value.details())


async def test_drain_ends_watches_as_unavailable(stack: AsyncExitStack, prober: FakeProber):
    controller = await start(stack, prober)
    watching = controller.watch()
    await until_watched(controller)
    await controller.service.drain(0.0)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await asyncio.wait_for(watching.read(), WAIT_S)
    assert isinstance(from_rpc_error(failure.value), Unavailable)


async def test_a_name_that_does_not_resolve_keeps_no_table_back_and_leaves_the_others_in(
    stack: AsyncExitStack, prober: FakeProber
):
    # A pool whose size somebody else decides has names for more workers than there are.
    asking = GrpcProber(timeout_s=WAIT_S)
    stack.push_async_callback(asking.aclose)
    nobody = "experts-7.experts.invalid:9000"
    with pytest.raises(Unavailable):
        await asking.probe(nobody)
    prober.answers[nobody] = None
    prober.unreachable.add(nobody)
    controller = await start(stack, prober)
    for _ in range(MAX_FAILURES):
        await controller.keeper.look()
    assert preferred(await next_table(controller.watch())).keys() == ANSWERS.keys()
