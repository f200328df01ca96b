"""The scaling side as a whole, over HTTP and gRPC: real metrics in, scales and Events out."""

import json

import grpc
import pytest
from prometheus_client import CollectorRegistry

from services.controller.assembly import open_scaling
from services.controller.clients.kubernetes import KubernetesCluster
from services.controller.clients.pods import PodReader, parse
from services.controller.metrics import ControllerMetrics
from services.controller.scaling_settings import ScalingSettings
from services.controller.servicer import SERVICE, ControllerServicer
from services.controller.tables import Tables
from tests.contract.controller.api_server import COST, NAMESPACE
from understudy.api.controller.v1 import controller_pb2, controller_pb2_grpc
from understudy.errors import InvalidArgument, Unavailable
from understudy.rpc import from_rpc_error, open_channel
from understudy.serving import ServingSettings, start_service


def settings(**pool) -> ScalingSettings:
    attention = {"workload": "deployments/llm", "max_replicas": 8}
    rules = {
        "down_window_s": 0, "down_cool_down_s": 0, "up_cool_down_s": 0,
        "pools": [{"name": "llm", "attention": attention, "tpot_s": 0.1, **pool}],
    }  # fmt: skip
    return ScalingSettings(
        rules=json.dumps(rules), namespace=NAMESPACE, identity="me", routers="app=router"
    )


@pytest.fixture
async def scaling(api, stack):
    async def start(**pool):
        registry = CollectorRegistry()
        cluster = KubernetesCluster(NAMESPACE, "me", api.configuration)
        found = await stack.enter_async_context(open_scaling(settings(**pool), registry, cluster))
        assert found is not None
        await found.leadership.campaign()
        return found

    return start


async def test_slow_tokens_grow_the_pool_and_an_event_says_why(api, scaling, add_worker):
    worker = await add_worker("w1")
    running = await scaling()
    worker.work(steps=1, prefill=1, decode=1, ended=1, step_s=0.01)
    await running.loop.tick()
    assert api.replicas == 1
    worker.info.num_running = 30
    worker.work(steps=50, prefill=900, decode=1500, ended=10, step_s=0.3)
    await running.loop.tick()
    assert api.replicas > 1
    assert api.events[-1]["reason"] == "ScaledUp"
    assert "1 -> " in api.events[-1]["message"]
    assert api.leases["understudy-controller"]["spec"]["holderIdentity"] == "me"


async def test_the_emptiest_worker_is_marked_when_the_pool_shrinks(api, scaling, add_worker):
    workers = [await add_worker(name) for name in ("w1", "w2", "w3")]
    api.replicas = 3
    running = await scaling()
    for tick in range(6):
        for index, worker in enumerate(workers):
            worker.info.num_running = 5 - index
            worker.work(10 + tick, 100, 30 + 7 * tick, 1, step_s=1e-5 + 1e-6 * tick)
        await running.loop.tick()
        if api.replicas < 3:
            break
    marked = {name for name, one in api.pods.items() if COST in one["metadata"]["annotations"]}
    assert api.replicas < 3
    assert "w3" in marked
    assert "w1" not in marked


async def test_a_pod_without_metrics_holds_its_pool_and_says_so(api, scaling, add_worker):
    await add_worker("w1")
    api.pods["w1"]["spec"]["containers"][0]["ports"] = []
    running = await scaling()
    await running.loop.tick()
    assert api.replicas == 1
    assert "Held (signals_missing)" in api.events[0]["message"]


async def test_a_missing_permission_changes_nothing_and_is_counted(api, scaling, add_worker):
    worker = await add_worker("w1")
    running = await scaling()
    worker.work(1, 1, 1, 1, 0.01)
    await running.loop.tick()
    worker.work(steps=50, prefill=900, decode=1500, ended=10, step_s=0.3)
    api.refusals = {"PATCH": 403}
    await running.loop.tick()
    assert api.replicas == 1


async def serve(stack, sizing=None):
    servicer = ControllerServicer(Tables([]), ControllerMetrics.on(CollectorRegistry()), sizing)
    service = await start_service(
        "controller", servicer.register, settings=ServingSettings(), services=[SERVICE]
    )
    stack.push_async_callback(service.drain, 1.0)
    channel = await stack.enter_async_context(open_channel(f"127.0.0.1:{service.port}"))
    return controller_pb2_grpc.ControllerServiceStub(channel)


async def test_a_report_wakes_a_sleeping_pool_and_tells_the_outlook(api, stack, scaling):
    api.replicas = 0
    running = await scaling(idle_s=60, start_s=42)
    stub = await serve(stack, running.loop)
    await running.loop.tick()
    assert api.replicas == 0
    request = controller_pb2.ReportRequest(router="r1")
    request.held.add(pool="llm", num_requests=2)
    asleep = await stub.Report(request, timeout=10)
    assert asleep.pools[0].num_replicas == 0
    await running.loop.tick()
    assert api.replicas == 1
    awake = (await stub.Report(request, timeout=10)).pools[0]
    assert (awake.pool, awake.num_replicas, awake.num_ready) == ("llm", 1, 0)
    assert awake.start_time.seconds == 42


@pytest.mark.parametrize(
    ("router", "pools", "field"),
    [("", ["llm"], "router"), ("r" * 254, [], "router"), ("r", [""], "held"),
     ("r", ["llm"] * 65, "held")],
)  # fmt: skip
async def test_malformed_reports_are_refused_naming_the_field(stack, router, pools, field):
    stub = await serve(stack)
    held = [controller_pb2.HeldRequests(pool=pool) for pool in pools]
    with pytest.raises(grpc.RpcError) as caught:
        await stub.Report(controller_pb2.ReportRequest(router=router, held=held), timeout=10)
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidArgument)
    assert error.metadata["field"] == field


async def test_a_controller_that_scales_nothing_says_so(stack):
    stub = await serve(stack)
    with pytest.raises(grpc.RpcError) as caught:
        await stub.Report(controller_pb2.ReportRequest(router="r"), timeout=10)
    error = from_rpc_error(caught.value)
    assert isinstance(error, Unavailable)
    assert "scales nothing" in error.message


async def test_without_rules_nothing_is_opened():
    async with open_scaling(ScalingSettings(), CollectorRegistry()) as found:
        assert found is None


async def test_metrics_that_are_none_or_too_long_are_unavailable(
    stack, api, add_worker, monkeypatch
):
    await add_worker("w1")
    reader = PodReader(5.0)
    stack.push_async_callback(reader.aclose)
    port = api.pods["w1"]["spec"]["containers"][0]["ports"][1]["containerPort"]
    assert await reader.metrics(f"127.0.0.1:{port}")
    monkeypatch.setattr("services.controller.clients.pods.MAX_BYTES", 10)
    with pytest.raises(Unavailable, match="longer than 10 bytes"):
        await reader.metrics(f"127.0.0.1:{port}")
    with pytest.raises(Unavailable, match="cannot be read"):
        await reader.metrics("127.0.0.1:1")
    with pytest.raises(ValueError, match="could not convert"):
        parse("not_a metric at all")
