"""A public service that drains: callers with one address for all replicas reach the next one."""

import asyncio
import contextlib

import grpc

from understudy import errors
from understudy.api.distiller.v1 import distiller_pb2
from understudy.serving import ANYONE, ServingSettings

PATIENCE_S = 60.0


async def started(start_one):
    """Start a service where another one is about to stop listening."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await start_one()
            except errors.FailedPrecondition:
                await asyncio.sleep(0.01)


async def test_new_calls_reach_the_next_replica_while_a_running_one_is_finished(start):
    request = distiller_pb2.SubmitRequest(run_id="wait")
    first = await start(callers=ANYONE)
    running = asyncio.ensure_future(first.stub.Submit(request))
    await first.probe.started.wait()
    listen = ServingSettings(listen=first.service.address)
    draining = asyncio.create_task(first.service.drain(PATIENCE_S))

    second = await started(lambda: start(settings=listen, callers=ANYONE))
    second.probe.gate.set()
    async with asyncio.timeout(PATIENCE_S):
        while not second.probe.started.is_set():
            with contextlib.suppress(grpc.RpcError):
                await first.stub.Submit(request)
    assert not running.done()

    first.probe.gate.set()
    assert (await running).run.run_id
    await draining
