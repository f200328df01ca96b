"""DistillerService in this process; runs fail fast, because their folder holds no adapter."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry

from services.distiller.executor import Executor
from services.distiller.metrics import observe_runs
from services.distiller.runs import Run, RunBook
from services.distiller.servicer import SERVICE, WATCH, DistillerServicer
from understudy.api.distiller.v1 import distiller_pb2, distiller_pb2_grpc
from understudy.errors import InvalidArgument, NotFound
from understudy.rpc import from_rpc_error, open_channel
from understudy.serving import ServingSettings, start_service

TIMEOUT_S = 60.0
Stub = distiller_pb2_grpc.DistillerServiceStub


@pytest.fixture
def book(tmp_path: Path) -> RunBook:
    return RunBook(tmp_path / "runs", max_queued=4)


@pytest.fixture
async def stub(book: RunBook) -> AsyncIterator[Stub]:
    service = await start_service(
        "distiller",
        DistillerServicer(book).register,
        settings=ServingSettings(),
        services=[SERVICE],
        endless=[WATCH],
    )
    async with open_channel(service.address) as channel:
        yield Stub(channel)
    await service.drain(0.0)


def request(run_id: str = "one") -> distiller_pb2.SubmitRequest:
    return distiller_pb2.SubmitRequest(
        stage=distiller_pb2.STAGE_CALIBRATE, steps=7, seed=2, run_id=run_id
    )


async def test_a_submitted_run_is_listed_and_counted(stub: Stub, book: RunBook) -> None:
    submitted = await stub.Submit(request(), timeout=TIMEOUT_S)
    assert submitted.run.state == distiller_pb2.RUN_STATE_QUEUED
    assert submitted.run.stage == distiller_pb2.STAGE_CALIBRATE
    assert not submitted.run.HasField("loss")
    listed = await stub.List(distiller_pb2.ListRequest(), timeout=TIMEOUT_S)
    assert [run.run_id for run in listed.runs] == ["one"]
    registry = CollectorRegistry()
    observe_runs(registry, book.listed)
    assert registry.get_sample_value("understudy_distiller_runs", {"state": "queued"}) == 1.0


async def test_a_retry_returns_the_same_run(stub: Stub) -> None:
    first = await stub.Submit(request(), timeout=TIMEOUT_S)
    again = await stub.Submit(request(), timeout=TIMEOUT_S)
    assert again.run.create_time == first.run.create_time


async def test_a_failing_run_is_watched_to_its_sentence(
    stub: Stub, book: RunBook, tmp_path: Path
) -> None:
    working = asyncio.create_task(Executor(book, tmp_path, threads=1).run_forever())
    await stub.Submit(request(), timeout=TIMEOUT_S)
    watch = stub.Watch(distiller_pb2.WatchRequest(run_id="one"), timeout=TIMEOUT_S)
    states = [answer.run async for answer in watch]
    assert states[-1].state == distiller_pb2.RUN_STATE_FAILED
    assert "config.json" in states[-1].error
    working.cancel()
    with suppress(asyncio.CancelledError):
        await working


async def test_progress_reaches_who_watches(stub: Stub, book: RunBook) -> None:
    await stub.Submit(request(), timeout=TIMEOUT_S)
    watch = stub.Watch(distiller_pb2.WatchRequest(run_id="one"), timeout=TIMEOUT_S)
    first = await watch.read()
    assert first.run.state == distiller_pb2.RUN_STATE_QUEUED
    order = book.get("one").order
    await book.update(Run(order, 0.0, "running", step=3, num_steps=7, loss=0.5))
    second = await watch.read()
    assert (second.run.step, second.run.num_steps, second.run.loss) == (3, 7, 0.5)
    watch.cancel()


async def test_a_watch_without_deadline_outlives_the_limit_of_a_call(book: RunBook) -> None:
    service = await start_service(
        "distiller",
        DistillerServicer(book).register,
        settings=ServingSettings(max_call_s=0.05),
        services=[SERVICE],
        endless=[WATCH],
    )
    async with open_channel(service.address) as channel:
        stub = Stub(channel)
        await stub.Submit(request(), timeout=TIMEOUT_S)
        watch = stub.Watch(distiller_pb2.WatchRequest(run_id="one"))
        await watch.read()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watch.read(), 0.5)
        assert not watch.done() or watch.cancelled()
        watch.cancel()
    await service.drain(0.0)


async def test_an_unspecified_stage_is_refused_by_field(stub: Stub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Submit(distiller_pb2.SubmitRequest(run_id="x"), timeout=TIMEOUT_S)
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidArgument)
    assert error.metadata["field"] == "stage"


async def test_an_unknown_run_is_not_found(stub: Stub) -> None:
    watch = stub.Watch(distiller_pb2.WatchRequest(run_id="absent"), timeout=TIMEOUT_S)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watch.read()
    assert isinstance(from_rpc_error(caught.value), NotFound)
