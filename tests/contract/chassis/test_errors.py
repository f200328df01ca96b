"""Every error class crosses the wire, unary and streaming, asyncio and synchronous."""

import asyncio
import logging

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from understudy import errors
from understudy.api.distiller.v1 import distiller_pb2, distiller_pb2_grpc
from understudy.rpc import from_rpc_error, open_sync_channel, request_metadata

EVERY_ERROR = [
    error_class(f"The {reason} happened.", {"field": "messages", "model": "slm"})
    for reason, error_class in errors.REASONS.items()
]


async def fail(running, kind):
    metadata = request_metadata(request_id="req-7")
    with pytest.raises(grpc.RpcError) as caught:
        if kind == "unary":
            await running.stub.Submit(distiller_pb2.SubmitRequest(), metadata=metadata)
        else:
            async for _ in running.stub.Watch(distiller_pb2.WatchRequest(), metadata=metadata):
                pass
    return caught.value


@pytest.mark.parametrize("kind", ["unary", "streaming"])
@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: error.reason)
async def test_error_arrives_as_its_class_with_metadata_and_request_id(start, error, kind):
    running = await start()
    running.probe.error = error

    raw = await fail(running, kind)
    failure = from_rpc_error(raw)

    assert type(failure) is type(error)
    assert raw.code().name == error.code
    assert failure.message == error.message
    assert failure.metadata["model"] == "slm"
    assert failure.request_id == "req-7"


async def test_invalid_argument_names_its_field_in_bad_request(start):
    running = await start()
    running.probe.error = errors.PromptTooLong("Too long.", {"field": "messages"})

    raw = await fail(running, "unary")

    status = status_pb2.Status.FromString(dict(raw.trailing_metadata())["grpc-status-details-bin"])
    bad_request = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad_request) for detail in status.details)
    assert bad_request.field_violations[0].field == "messages"


async def test_resource_exhausted_carries_its_retry_delay(start):
    running = await start()
    running.probe.error = errors.ResourceExhausted("The queue is full.", retry_after_s=2.5)

    failure = from_rpc_error(await fail(running, "unary"))

    assert isinstance(failure, errors.ResourceExhausted)
    assert failure.retry_after_s == 2.5


@pytest.mark.parametrize("kind", ["unary", "streaming"])
async def test_unknown_exception_is_internal_and_leaks_nothing(start, kind, caplog):
    running = await start()
    running.probe.error = ValueError("secret of the service")

    with caplog.at_level(logging.ERROR):
        raw = await fail(running, kind)
    failure = from_rpc_error(raw)

    assert raw.code() is grpc.StatusCode.INTERNAL
    assert failure.message == "internal error"
    assert "secret" not in f"{raw.trailing_metadata()}{raw.details()}"
    assert failure.request_id == "req-7"
    assert "secret of the service" in caplog.text


async def test_sync_channel_sees_the_same_error(start):
    running = await start()
    running.probe.error = errors.NotFound("No such run.", {"run": "r1"})

    def call() -> errors.UnderstudyError:
        with open_sync_channel(running.service.address) as channel:
            stub = distiller_pb2_grpc.DistillerServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.Submit(distiller_pb2.SubmitRequest(), timeout=10)
            return from_rpc_error(caught.value)

    failure = await asyncio.to_thread(call)

    assert isinstance(failure, errors.NotFound)
    assert failure.metadata["run"] == "r1"


async def test_long_error_message_is_cut_to_fit_trailing_metadata(start):
    running = await start()
    running.probe.error = errors.InvalidArgument("é" * 100_000, {"field": "x" * 100_000})

    failure = from_rpc_error(await fail(running, "unary"))

    assert isinstance(failure, errors.InvalidArgument)
    assert failure.message.startswith("é")


async def test_servicers_own_abort_passes_through(start):
    running = await start()

    with pytest.raises(grpc.RpcError) as caught:
        await running.stub.List(distiller_pb2.ListRequest())

    assert isinstance(from_rpc_error(caught.value), errors.NotFound)
    assert caught.value.details() == "the servicer's own words"


async def test_unknown_method_is_unimplemented(start):
    running = await start()
    call = running.channel.unary_unary("/understudy.test.Nothing/Nothing")

    with pytest.raises(grpc.RpcError) as caught:
        await call(b"")

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_absent_server_is_unavailable():
    with open_sync_channel("127.0.0.1:9") as channel:
        stub = distiller_pb2_grpc.DistillerServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.List(distiller_pb2.ListRequest(), timeout=10)

    assert isinstance(from_rpc_error(caught.value), errors.Unavailable)


async def test_request_id_is_made_where_the_callers_is_malformed(start):
    running = await start()
    metadata = (("x-request-id", "not a valid id!"),)
    call = running.stub.Submit(distiller_pb2.SubmitRequest(), metadata=metadata)

    seen = (await call).run.run_id

    assert len(seen) == 32
    assert (await call.trailing_metadata())["x-request-id"] == seen
