"""Deadlines, cancellation, admission, health, reflection and metrics of a chassis server."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from understudy import errors
from understudy.api.distiller.v1 import distiller_pb2
from understudy.rpc import WITHOUT_POLICY, from_rpc_error, open_channel
from understudy.serving import HealthState, ServingSettings

SERVICE = "understudy.api.distiller.v1.DistillerService"
CHAT = "/understudy.test.Chat/Chat"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


def wait_request():
    return distiller_pb2.SubmitRequest(run_id="wait")


async def test_callers_deadline_reaches_the_servicer(start):
    running = await start()

    response = await running.stub.Submit(distiller_pb2.SubmitRequest(), timeout=50)

    assert 0 < response.run.loss <= 50


async def test_passed_deadline_is_reported_and_closes_the_servicers_generator(start):
    running = await start()

    with pytest.raises(grpc.RpcError) as caught:
        async for _ in running.stub.Watch(distiller_pb2.WatchRequest(run_id="wait"), timeout=0.2):
            pass

    assert isinstance(from_rpc_error(caught.value), errors.DeadlineExceeded)
    await running.probe.closed.wait()


async def test_call_without_deadline_gets_the_servers_maximum(start):
    running = await start(settings=ServingSettings(max_call_s=0.2))

    with pytest.raises(grpc.RpcError) as caught:
        async for _ in running.stub.Watch(distiller_pb2.WatchRequest(run_id="wait")):
            pass

    failure = from_rpc_error(caught.value)
    assert isinstance(failure, errors.DeadlineExceeded)
    assert failure.request_id


async def test_call_cut_in_the_middle_of_a_write_still_tells_its_status(start):
    running = await start()
    call = running.stub.Watch(distiller_pb2.WatchRequest(run_id="flood"))
    messages = aiter(call)
    await anext(messages)
    await running.probe.started.wait()

    draining = asyncio.create_task(running.service.drain(0.0))
    await running.probe.closed.wait()
    with pytest.raises(grpc.RpcError) as caught:
        async for _ in messages:
            pass

    assert isinstance(from_rpc_error(caught.value), errors.Unavailable)
    await draining


async def test_leaving_caller_closes_the_servicers_generator(start):
    running = await start()
    call = running.stub.Watch(distiller_pb2.WatchRequest(run_id="wait"))
    await running.probe.started.wait()

    call.cancel()

    await running.probe.closed.wait()


async def test_flooded_caller_that_never_reads_closes_the_servicers_generator(start):
    running = await start()
    call = running.stub.Watch(distiller_pb2.WatchRequest(run_id="flood"))
    await running.probe.started.wait()

    call.cancel()

    await running.probe.closed.wait()
    assert running.probe.messages < 10_000


async def test_calls_beyond_the_limit_are_refused_with_retry_delay(start):
    running = await start(settings=ServingSettings(max_concurrent_calls=1))
    first = asyncio.ensure_future(running.stub.Submit(wait_request()))
    await running.probe.started.wait()

    with pytest.raises(grpc.RpcError) as caught:
        await running.stub.Submit(distiller_pb2.SubmitRequest())

    failure = from_rpc_error(caught.value)
    assert isinstance(failure, errors.ResourceExhausted)
    assert failure.retry_after_s > 0
    running.probe.gate.set()
    assert (await first).run.run_id


async def test_reflection_lists_the_services(start):
    running = await start()
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")

    responses = [response async for response in stub.ServerReflectionInfo(iter([request]))]

    names = {service.name for service in responses[0].list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_health_follows_the_services_state(start):
    running = await start(health=HealthState(is_ready=False))
    async with open_channel(running.service.address, options=WITHOUT_POLICY) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        statuses = aiter(stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE)))

        seen = [(await anext(statuses)).status]
        await asyncio.to_thread(running.health.mark_ready)
        seen.append((await anext(statuses)).status)
        running.health.mark_unready("the weights are gone")
        seen.append((await anext(statuses)).status)

    assert seen == [NOT_SERVING, SERVING, NOT_SERVING]
    assert running.health.reason == "the weights are gone"


async def test_liveness_outlasts_readiness_and_ends_only_when_a_restart_helps(start):
    running = await start(health=HealthState(is_ready=False))
    async with open_channel(running.service.address, options=WITHOUT_POLICY) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="liveness")
        assert (await stub.Check(request)).status == SERVING
        running.health.mark_failed("the engine died")
        running.health.mark_ready()
        assert (await stub.Check(request)).status == NOT_SERVING

    assert not running.health.is_ready
    assert running.health.reason == "the engine died"


async def test_one_leaving_health_watcher_does_not_silence_another(start):
    running = await start()
    async with open_channel(running.service.address, options=WITHOUT_POLICY) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        leaving, staying = stub.Watch(request), stub.Watch(request)
        statuses = aiter(staying)
        await anext(aiter(leaving))
        await anext(statuses)
        leaving.cancel()
        running.health.mark_unready("busy")
        assert (await anext(statuses)).status == NOT_SERVING
        staying.cancel()


async def test_channel_skips_a_backend_that_is_not_serving(start):
    running = await start(health=HealthState(is_ready=False))

    with pytest.raises(grpc.RpcError) as caught:
        await running.stub.Submit(distiller_pb2.SubmitRequest(), timeout=20)
    assert isinstance(from_rpc_error(caught.value), errors.Unavailable)

    running.health.mark_ready()
    response = await running.stub.Submit(
        distiller_pb2.SubmitRequest(), timeout=20, wait_for_ready=True
    )
    assert response.run.run_id


async def test_health_of_a_strange_service_is_not_found(start):
    running = await start()
    stub = health_pb2_grpc.HealthStub(running.channel)

    with pytest.raises(grpc.RpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="strange"))

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="strange"))
    assert (await anext(aiter(watch))).status == SERVICE_UNKNOWN
    watch.cancel()


async def test_metrics_count_calls_by_method_and_code(start):
    running = await start()
    await running.stub.Submit(distiller_pb2.SubmitRequest())
    running.probe.error = errors.NotFound("No.")
    with pytest.raises(grpc.RpcError):
        await running.stub.Submit(distiller_pb2.SubmitRequest())
    await running.service.drain(10.0)

    def count(code: str) -> float | None:
        labels = {"method": f"/{SERVICE}/Submit", "code": code}
        return running.registry.get_sample_value("understudy_serving_calls_total", labels)

    assert count("OK") == 1
    assert count("NOT_FOUND") == 1


async def test_drain_refuses_new_calls_and_lets_running_ones_finish(start):
    running = await start()
    first = asyncio.ensure_future(running.stub.Submit(wait_request()))
    await running.probe.started.wait()
    stub = health_pb2_grpc.HealthStub(running.channel)
    statuses = aiter(stub.Watch(health_pb2.HealthCheckRequest()))
    assert (await anext(statuses)).status == SERVING

    draining = asyncio.create_task(running.service.drain(60.0))
    assert (await anext(statuses)).status == NOT_SERVING
    async with open_channel(running.service.address, options=WITHOUT_POLICY) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await channel.unary_unary(f"/{SERVICE}/Submit")(b"")
    assert isinstance(from_rpc_error(caught.value), errors.Unavailable)
    running.probe.gate.set()

    assert (await first).run.run_id
    await draining


async def test_call_that_outlives_the_drain_ends_unavailable(start):
    running = await start()
    call = running.stub.Watch(distiller_pb2.WatchRequest(run_id="wait"))
    messages = aiter(call)
    await anext(messages)

    draining = asyncio.create_task(running.service.drain(0.1))
    with pytest.raises(grpc.RpcError) as caught:
        await anext(messages)

    assert isinstance(from_rpc_error(caught.value), errors.Unavailable)
    await draining
    await running.probe.closed.wait()


async def test_second_signal_cuts_the_grace_short(start):
    running = await start()
    first = running.stub.Watch(distiller_pb2.WatchRequest(run_id="wait"))
    await anext(aiter(first))
    hurry = asyncio.Event()
    hurry.set()

    await running.service.drain(3600.0, hurry)

    await running.probe.closed.wait()


async def test_drain_does_not_wait_for_endless_streams_and_ends_them_unavailable(start):
    running = await start(endless=[CHAT], settings=ServingSettings(max_call_s=0.001))
    call = running.channel.stream_stream(CHAT)()
    await call.write(b"still here")
    assert await call.read() == b"still here"

    await running.service.drain(3600.0)

    with pytest.raises(grpc.RpcError) as caught:
        await call.read()
    assert isinstance(from_rpc_error(caught.value), errors.Unavailable)


async def test_failed_handover_does_not_stop_the_drain(start, caplog):
    async def on_drain(grace_s: float) -> None:
        raise RuntimeError(f"nothing to hand over in {grace_s} s")

    running = await start(on_drain=on_drain)

    await running.service.drain(5.0)

    assert "could not hand over" in caplog.text


async def test_used_port_is_refused_with_a_sentence(start):
    running = await start()

    with pytest.raises(errors.FailedPrecondition, match="another process may hold the port"):
        await start(settings=ServingSettings(listen=running.service.address))
