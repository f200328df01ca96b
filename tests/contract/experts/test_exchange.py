"""Raw frames on the wire: what is wrong is answered by name, and the stream goes on."""

import asyncio
import logging
from datetime import timedelta

import grpc
import pytest
import torch
from google.protobuf.duration_pb2 import Duration

from services.experts.servicer import EXCHANGE, ExpertsServicer
from tests.contract.experts.parts import DENSE, MIXTURE, Fleet, Worker, seeded, until
from understudy.api.experts.v1 import experts_pb2, experts_pb2_grpc
from understudy.errors import FailedPrecondition, InvalidArgument
from understudy.exchange.frame import (
    VERSION,
    Frame,
    FrameStatus,
    FrameType,
    Header,
    decode_frame,
    encode_frame,
)
from understudy.exchange.tensors import read_error, read_reply, request_pieces
from understudy.rpc import from_rpc_error, open_channel

HEADER = Header(FrameType.REQUEST, 7, 1, 0, 0, 0, 2, DENSE.hidden_size, 0, 0, 4)
HIDDEN = torch.ones(2, DENSE.hidden_size)


def frame_of(**changes: int) -> bytes:
    return encode_frame(HEADER._replace(**changes), request_pieces((), HIDDEN, None, None))


async def ask(worker: Worker, *messages: bytes) -> list[Frame]:
    """Send messages on one stream and return as many answers."""
    async with open_channel(worker.address) as channel:
        stream = channel.stream_stream(EXCHANGE)()
        answers = []
        for message in messages:
            await stream.write(message)
            answers.append(decode_frame(await stream.read()))
        stream.cancel()
        return answers


async def refusal(worker: Worker, message: bytes) -> tuple[FrameStatus, str]:
    """Return how a message is refused, having seen that the stream still works after it."""
    refused, answered = await ask(worker, message, frame_of(step=99))
    assert answered.header.status == FrameStatus.OK
    assert answered.header.step == 99
    return FrameStatus(refused.header.status), read_error(refused)


async def test_a_request_is_answered_with_the_sum_and_four_times(fleet: Fleet):
    worker = await fleet.add_worker(seeded(DENSE))
    (answer,) = await ask(worker, frame_of())
    times, total = read_reply(answer)
    weights = worker.worker.holdings.weights
    partials = [weights.partial(0, shard, HIDDEN, None) for shard in range(4)]
    assert torch.equal(total, partials[0] + partials[1] + partials[2] + partials[3])
    assert list(times) == sorted(times)
    assert times.received_ns > 0
    assert answer.header.type == FrameType.REPLY


async def test_a_frame_of_the_wrong_length_gets_an_error_reply_and_a_log_line(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
):
    worker = await fleet.add_worker(seeded(DENSE))
    with caplog.at_level(logging.WARNING, logger="services.experts"):
        status, sentence = await refusal(worker, frame_of()[:-4])
    assert status == FrameStatus.MALFORMED
    assert sentence == (
        "The AFD frame's length is 332; expected the 336 bytes that its header states."
    )
    assert sentence in caplog.text


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (b"short", "length is 5"),
        (b"NOPE" + frame_of()[4:], "magic"),
        (frame_of()[:-1] + b"\xff", "checksum"),
        (frame_of(type=FrameType.REPLY), "Only requests"),
        (frame_of(hidden_size=33), "hidden size is 33; this model's is 32"),
        (frame_of(num_choices=2), "experts per token is 2; this model's is 0"),
        (frame_of(num_tokens=0), "at least one token"),
        (frame_of(num_shards=0), "at least one token and one shard"),
        (frame_of(num_tokens=3), "3 tokens of hidden size 32"),
        (frame_of(epoch=2**63), "lies in the future"),
        (frame_of(type=FrameType.TRACE_END, num_traces=300), "ends 300 traces has 9600 bytes"),
    ],
)
async def test_a_malformed_message_is_refused_by_name(fleet: Fleet, message: bytes, sentence: str):
    worker = await fleet.add_worker(seeded(DENSE))
    status, refused = await refusal(worker, message)
    assert status == FrameStatus.MALFORMED
    assert sentence in refused


async def test_an_expert_beyond_the_models_is_refused(fleet: Fleet):
    worker = await fleet.add_worker(seeded(MIXTURE))
    header = HEADER._replace(num_choices=2, num_shards=1)
    pieces = request_pieces((), HIDDEN, torch.tensor([[0, 1], [2, 4]]), torch.ones(2, 2))
    (answer,) = await ask(worker, encode_frame(header, pieces))
    assert answer.header.status == FrameStatus.MALFORMED
    assert "expert 4; the model has 4" in read_error(answer)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"layer": 3}, FrameStatus.NOT_HELD),
        ({"first_shard": 2, "num_shards": 3}, FrameStatus.NOT_HELD),
        ({"epoch": 6}, FrameStatus.STALE_EPOCH),
        ({"lane": 4}, FrameStatus.NO_CREDIT),
    ],
)
async def test_what_cannot_be_served_here_is_told_apart(
    fleet: Fleet, changes: dict[str, int], status: FrameStatus
):
    worker = await fleet.add_worker(seeded(DENSE), num_credits=4)
    _, answer = await ask(worker, frame_of(), frame_of(**changes))
    assert answer.header.status == status
    assert answer.header.epoch == 7
    assert answer.header.lane == changes.get("lane", 0)


async def test_a_lane_in_flight_is_not_given_twice(fleet: Fleet, monkeypatch):
    worker = await fleet.add_worker(seeded(DENSE))
    monkeypatch.setattr(worker.worker, "admit", lambda frame, answer: None)
    async with open_channel(worker.address) as channel:
        stream = channel.stream_stream(EXCHANGE)()
        await stream.write(frame_of())
        await stream.write(frame_of())
        answer = decode_frame(await stream.read())
        stream.cancel()
    assert answer.header.status == FrameStatus.NO_CREDIT


async def test_a_frame_whose_time_passed_in_the_queue_is_not_computed(fleet: Fleet):
    worker = await fleet.add_worker(seeded(DENSE))
    (answer,) = await ask(worker, frame_of(remaining_us=0))
    assert answer.header.status == FrameStatus.EXPIRED


async def test_a_failed_computation_is_answered_and_the_worker_lives_on(fleet: Fleet, monkeypatch):
    worker = await fleet.add_worker(seeded(DENSE))
    with monkeypatch.context() as patch:
        patch.setattr(type(worker.worker.holdings), "compute", _fail)
        (answer,) = await ask(worker, frame_of())
    assert answer.header.status == FrameStatus.FAILED
    assert "secret" not in read_error(answer)
    (answer,) = await ask(worker, frame_of())
    assert answer.header.status == FrameStatus.OK


def _fail(*_: object) -> None:
    raise RuntimeError("secret detail")


async def test_drain_refuses_new_frames_and_waits_for_those_admitted(fleet: Fleet):
    worker = await fleet.add_worker(seeded(DENSE))
    async with open_channel(worker.address) as channel:
        stub = experts_pb2_grpc.ExpertsServiceStub(channel)
        grace = Duration()
        grace.FromTimedelta(timedelta(seconds=5))
        drained = await stub.Drain(experts_pb2.DrainRequest(grace=grace), timeout=20)
        assert drained.num_unanswered == 0
        for seconds in (-1, 3600, 2**62):
            request = experts_pb2.DrainRequest(grace=Duration(seconds=seconds))
            with pytest.raises(grpc.RpcError) as caught:
                await stub.Drain(request, timeout=20)
            assert isinstance(from_rpc_error(caught.value), InvalidArgument)
    (answer,) = await ask(worker, frame_of())
    assert answer.header.status == FrameStatus.DRAINING


def large_frame(lane: int) -> bytes:
    hidden = torch.ones(3000, DENSE.hidden_size)
    header = HEADER._replace(num_tokens=3000, lane=lane)
    return encode_frame(header, request_pieces((), hidden, None, None))


async def test_drain_counts_answers_that_were_not_written_and_waits_for_their_reader(fleet: Fleet):
    worker = await fleet.add_worker(seeded(DENSE), num_credits=64)
    async with (
        open_channel(worker.address) as channel,
        # A fixed window, which a few answers fill.
        open_channel(worker.address, options=[("grpc.http2.bdp_probe", 0)]) as slow,
    ):
        stub = experts_pb2_grpc.ExpertsServiceStub(channel)
        stream = slow.stream_stream(EXCHANGE)()
        for lane in range(8):
            await stream.write(large_frame(lane))
        served = {"status": "ok"}
        await asyncio.to_thread(
            until,
            lambda: (
                worker.registry.get_sample_value("understudy_experts_frames_total", served) == 8
            ),
        )
        hasty = experts_pb2.DrainRequest(grace=Duration(nanos=100_000_000))
        assert (await stub.Drain(hasty, timeout=20)).num_unanswered > 0
        patient = experts_pb2.DrainRequest(grace=Duration(seconds=15))
        draining = asyncio.ensure_future(stub.Drain(patient, timeout=20))
        for _ in range(8):
            assert decode_frame(await stream.read()).header.status == FrameStatus.OK
        assert (await draining).num_unanswered == 0
        stream.cancel()


class Flood:
    """A peer that sends for ever and reads nothing."""

    def __init__(self) -> None:
        self.num_read = 0

    async def read(self) -> bytes:
        self.num_read += 1
        await asyncio.sleep(0)
        return b"nonsense"

    async def write(self, frame: bytes) -> None:
        await asyncio.Event().wait()


async def test_a_peer_that_sends_and_does_not_read_is_not_read_from(fleet: Fleet):
    worker = await fleet.add_worker(seeded(DENSE), num_credits=4)
    flood = Flood()
    serving = asyncio.create_task(ExpertsServicer(worker.worker).exchange(None, flood))
    for _ in range(200):
        await asyncio.sleep(0)
    assert flood.num_read == 2 * 4 + 1
    serving.cancel()


async def test_hello_says_what_is_held(fleet: Fleet):
    worker = await fleet.add_worker(seeded(MIXTURE), expert_ids=[2, 3], layers=[1, 2])
    async with open_channel(worker.address) as channel:
        stub = experts_pb2_grpc.ExpertsServiceStub(channel)
        hello = await stub.Hello(experts_pb2.HelloRequest(frame_version=VERSION), timeout=20)
    assert list(hello.expert_ids) == [2, 3]
    assert (hello.first_layer, hello.num_layers) == (1, 2)
    assert (hello.hidden_size, hello.credits) == (MIXTURE.hidden_size, 4)
    assert hello.ffn_digest.hex() == "ab" * 32


@pytest.mark.parametrize(
    "request_",
    [
        experts_pb2.HelloRequest(frame_version=VERSION + 1),
        experts_pb2.HelloRequest(frame_version=VERSION, ffn_digest=b"\1" * 32),
    ],
)
async def test_hello_refuses_another_version_or_model(fleet: Fleet, request_):
    worker = await fleet.add_worker(seeded(DENSE))
    async with open_channel(worker.address) as channel:
        stub = experts_pb2_grpc.ExpertsServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            await stub.Hello(request_, timeout=20)
    assert isinstance(from_rpc_error(caught.value), FailedPrecondition)


async def test_frames_of_two_attention_workers_at_one_layer_are_computed_in_one_batch(
    fleet: Fleet, monkeypatch
):
    worker = await fleet.add_worker(seeded(DENSE))
    holdings = worker.worker.holdings
    compute = type(holdings).compute
    entered, release = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow_first(self, header, request):
        if header.layer == 2:
            loop.call_soon_threadsafe(entered.set)
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result()
        return compute(self, header, request)

    monkeypatch.setattr(type(holdings), "compute", slow_first)
    first = asyncio.create_task(ask(worker, frame_of(layer=2)))
    await entered.wait()
    others = [asyncio.create_task(ask(worker, frame_of(layer=1, step=step))) for step in (5, 6)]
    await asyncio.to_thread(until, lambda: worker.worker.num_unanswered == 3)
    release.set()
    await asyncio.gather(first, *others)
    batches = worker.registry.get_sample_value
    assert batches("understudy_experts_batch_frames_count") == 2
    assert batches("understudy_experts_batch_frames_sum") == 3
