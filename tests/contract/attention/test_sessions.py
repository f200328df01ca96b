"""The session as a contract: refusals, cancellation, deadlines, slow readers, drain, death."""

import asyncio
from datetime import timedelta

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.contract.attention.conftest import Running, Start
from tests.contract.attention.parts import ROOT, WAIT_S, Output, Router, submit
from understudy.api.attention.v1 import attention_pb2, attention_pb2_grpc
from understudy.errors import (
    Aborted,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PromptTooLong,
    ResourceExhausted,
    Unavailable,
    UnderstudyError,
    UnsupportedSchema,
)
from understudy.grammar import GrammarSource
from understudy.rpc import from_rpc_error, open_channel

BAD_GRAMMAR = GrammarSource("lark", "start: undefined_rule")
BAD_KEYWORD = GrammarSource("json_schema", '{"type": "array", "uniqueItems": true}')


def wrong_hash() -> attention_pb2.Submit:
    message = submit(1, [65], grammar=GrammarSource("lark", 'start: "a"'))
    message.grammar.hash = b"?" * 32
    return message


def unknown_kind() -> attention_pb2.Submit:
    message = submit(1, [65], grammar=GrammarSource("lark", 'start: "a"'))
    message.grammar.kind = 0
    return message


@pytest.mark.parametrize(
    ("message", "error", "sentence"),
    [
        (submit(1, []), InvalidArgument, "prompt is empty"),
        (submit(1, [65] * 600), PromptTooLong, "600 tokens leave no room"),
        (submit(1, [9999]), InvalidArgument, "Token 9999 is outside"),
        (submit(1, [65], committed=1), InvalidArgument, "leave no prompt"),
        (submit(1, [65], adapter="none"), NotFound, "no adapter 'none'"),
        (submit(1, [65], max_tokens=0), InvalidArgument, "max_tokens is 0"),
        (submit(1, [65], max_tokens=2**32 - 1), InvalidArgument, "max_tokens is 4294967295"),
        (submit(1, [65], temperature=-1.0), InvalidArgument, "temperature is -1"),
        (submit(1, [65], top_p=1.5), InvalidArgument, r"top_p is 1\.5"),
        (submit(1, [65], kv_root=b"short"), InvalidArgument, "5 bytes"),
        (submit(1, [65], grammar=BAD_GRAMMAR), UnsupportedSchema, "cannot be compiled"),
        (submit(1, [65], grammar=BAD_KEYWORD), UnsupportedSchema, "'uniqueItems'"),
        (submit(1, [65, 98], committed=1, grammar=GrammarSource("lark", 'start: "a"')),
         InvalidArgument, "does not fit the grammar"),
        (wrong_hash(), InvalidArgument, "hash is not that of its source"),
        (unknown_kind(), InvalidArgument, "unknown kind"),
        (submit(1, [65], time_left_s=0.0), DeadlineExceeded, "deadline passed"),
    ],
)  # fmt: skip
async def test_refused_submission_fails_alone(
    worker: Running, message: attention_pb2.Submit, error: type[UnderstudyError], sentence: str
):
    router = worker.router()
    refused = await router.run(message)
    assert type(refused.error) is error
    with pytest.raises(error, match=sentence):
        raise refused.error
    served = await router.run(submit(2, [65, 66], max_tokens=2))
    assert len(served.tokens) == 2
    await worker.check_blocks_free()


async def test_full_queue_is_refused_with_retry_delay(start: Start):
    running = await start(max_sequences=1, max_waiting=1)
    router = running.router()
    await router.send(*(submit(index, [65], max_tokens=400) for index in range(4)))
    while not any(output.error for output in router.outputs.values()):
        await router.read()
    (refused, *_) = [output.error for output in router.outputs.values() if output.error]
    assert isinstance(refused, ResourceExhausted)
    assert refused.retry_after_s > 0


async def test_cancelled_sequence_frees_its_blocks_and_the_others_go_on(worker: Running):
    router = worker.router()
    await router.send(submit(1, [65] * 30, max_tokens=400), submit(2, [70, 71], max_tokens=6))
    await router.read()
    await router.cancel(1)
    await router.cancel(77)
    assert len((await router.result(2)).tokens) == 6
    marker = await router.run(submit(3, [65], max_tokens=1))
    assert marker.finished is not None
    assert router.outputs[1].finished is None
    assert router.outputs[1].error is None
    await worker.check_blocks_free()


async def test_client_that_leaves_mid_stream_frees_its_blocks(worker: Running):
    router = worker.router()
    await router.send(*(submit(index, [65] * 20, max_tokens=400) for index in range(3)))
    await router.read()
    assert worker.worker.info().num_running > 0
    router.call.cancel()
    await until(lambda: worker.worker.sessions.num_live == 0)
    await worker.check_blocks_free()


async def test_deadline_ends_a_running_sequence(worker: Running):
    router = worker.router()
    output = await router.run(submit(1, [65], max_tokens=500, time_left_s=0.05))
    assert isinstance(output.error, DeadlineExceeded)
    await worker.check_blocks_free()


@pytest.mark.parametrize("seconds", [2**62, -(2**62)])
async def test_absurd_time_left_concerns_its_sequence_only(worker: Running, seconds: int):
    router = worker.router()
    absurd = submit(2, [65], max_tokens=1)
    absurd.time_left.CopyFrom(Duration(seconds=seconds))
    await router.send(submit(1, [65], max_tokens=20), absurd)
    output = await router.result(2)
    assert isinstance(output.error, DeadlineExceeded) == (seconds < 0)
    assert len((await router.result(1)).tokens) == 20


async def test_cancel_while_the_grammar_compiles_is_honoured(worker: Running):
    router = worker.router()
    grammar = GrammarSource("lark", "start: /[a-z]{1,400}/")
    await router.send(submit(1, [65], grammar=grammar, max_tokens=300))
    await router.cancel(1)
    await router.run(submit(2, [65], max_tokens=1))
    await until(lambda: worker.worker.sessions.num_live == 0)
    await worker.check_blocks_free()


async def test_slow_reader_loses_its_sequences_and_the_engine_serves_others(start: Start):
    running = await start(session_queue=4, num_blocks=600)
    # A fixed window, which many sequences fill; then the queue of the session fills.
    channel = open_channel(running.service.address, options=[("grpc.http2.bdp_probe", 0)])
    slow = Router(attention_pb2_grpc.AttentionServiceStub(channel))
    quick = running.router()
    await slow.send(*(submit(index, [65 + index], max_tokens=2000) for index in range(16)))
    served = await quick.run(submit(1, [65, 66], max_tokens=3))
    assert len(served.tokens) == 3
    samples = running.registry.get_sample_value
    await until(lambda: samples("understudy_attention_slow_readers_total") == 1)
    for index in range(16):
        assert isinstance((await slow.result(index)).error, Aborted)
    again = await slow.run(submit(99, [65], max_tokens=2))
    assert len(again.tokens) == 2
    await running.check_blocks_free()
    await channel.close(None)


@pytest.mark.parametrize("is_reused", [True, False])
async def test_broken_protocol_ends_the_stream(worker: Running, is_reused: bool):
    router = worker.router()
    if is_reused:
        await router.send(submit(1, [65], max_tokens=500), submit(1, [65]))
    else:
        await router.call.write(attention_pb2.SessionRequest())
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await drained(router)
    assert isinstance(from_rpc_error(failure.value), InvalidArgument)
    await worker.check_blocks_free()


async def test_id_reused_after_a_cancel_ends_its_session_and_nobody_elses(worker: Running):
    router, other = worker.router(), worker.router()
    await other.send(submit(1, [65], max_tokens=40))
    grammar = GrammarSource("lark", "start: /[a-z]{1,300}/")
    await router.send(submit(1, [65], grammar=grammar))
    await router.cancel(1)
    await router.send(submit(1, [65], grammar=grammar))
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await drained(router)
    assert isinstance(from_rpc_error(failure.value), InvalidArgument)
    assert len((await other.result(1)).tokens) == 40
    assert not worker.worker.engine.is_dead
    await worker.check_blocks_free()


async def test_half_closed_session_ends_when_its_sequences_have(worker: Running):
    router = worker.router()
    await router.send(submit(1, [65], max_tokens=3))
    await router.call.done_writing()
    assert len((await router.result(1)).tokens) == 3
    assert await router.call.read() is grpc.aio.EOF


def grace(seconds: float) -> attention_pb2.DrainRequest:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return attention_pb2.DrainRequest(grace=duration)


async def test_drain_finishes_running_sequences_then_ends_streams(worker: Running):
    router = worker.router()
    await router.send(submit(1, [65], max_tokens=20))
    await router.read()
    draining = asyncio.create_task(_drain(worker.stub, WAIT_S))
    assert len((await router.result(1)).tokens) == 20
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await drained(router)
    assert isinstance(from_rpc_error(failure.value), Unavailable)
    assert await draining == 0
    assert not worker.health.is_ready


async def test_drain_refuses_new_sequences_and_hands_over_long_ones(start: Start):
    running = await start(num_blocks=256)
    router = running.router()
    await router.send(submit(1, [65], max_tokens=2000))
    await router.read()
    draining = asyncio.create_task(_drain(running.stub, 1.0))
    await until(lambda: running.worker.sessions.refusal is not None)
    refused = await router.run(submit(2, [65]))
    assert isinstance(refused.error, Unavailable)
    handed_over = await router.result(1)
    assert handed_over.error is None or isinstance(handed_over.error, Aborted)
    await draining


async def _drain(stub: attention_pb2_grpc.AttentionServiceStub, seconds: float) -> int:
    return (await stub.Drain(grace(seconds), timeout=WAIT_S)).num_unfinished


@pytest.mark.parametrize("seconds", [-1, 3600, 2**62])
async def test_grace_beyond_its_limits_is_refused(worker: Running, seconds: int):
    request = attention_pb2.DrainRequest(grace=Duration(seconds=seconds))
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await worker.stub.Drain(request, timeout=WAIT_S)
    assert isinstance(from_rpc_error(failure.value), InvalidArgument)


async def test_dead_engine_turns_health_and_aborts_sequences(worker: Running):
    router = worker.router()
    await router.send(submit(1, [65], max_tokens=500))
    await router.read()

    def die(core: object) -> None:
        raise RuntimeError("a tensor went missing")

    worker.worker.engine.call(die)
    assert isinstance((await router.result(1)).error, Aborted)
    assert not worker.health.is_ready
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await drained(router)
    assert isinstance(from_rpc_error(failure.value), Unavailable)
    with pytest.raises(grpc.aio.AioRpcError):
        await drained(worker.router())


async def test_info_tells_model_capacity_and_load(worker: Running):
    info = await worker.stub.Info(attention_pb2.InfoRequest(), timeout=WAIT_S)
    assert info.model.startswith("tiny@")
    assert len(info.digest) == 32
    assert list(info.adapters) == ["left", "right"]
    assert (info.num_blocks, info.num_free_blocks, info.block_size_tokens) == (64, 64, 8)
    assert info.max_context_tokens == 512
    assert info.position_parameters > 0
    assert not info.is_disaggregated
    assert info.arithmetic == attention_pb2.ARITHMETIC_EXACT
    assert info.is_batch_independent


async def test_two_routers_may_use_the_same_ids(worker: Running):
    routers = [worker.router(), worker.router()]
    await asyncio.gather(
        *(r.send(submit(1, [65 + i], max_tokens=5, kv_root=ROOT)) for i, r in enumerate(routers))
    )
    outputs: list[Output] = [await router.result(1) for router in routers]
    assert outputs[0].tokens != outputs[1].tokens


async def until(condition) -> None:
    """Let the loop run until something is true."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def drained(router: Router) -> None:
    """Read a session to its end."""
    while True:
        await router.read()
