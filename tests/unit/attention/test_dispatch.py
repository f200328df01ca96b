"""Choosing replicas, and calls that survive workers."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.attention.dispatch import Assignment, Call, Placement, Replica, choose_replicas
from services.attention.links import Dispatcher, Link
from understudy.errors import Unavailable
from understudy.exchange.frame import (
    FrameStatus,
    FrameType,
    Header,
    decode_frame,
    encode_frame,
)
from understudy.exchange.tensors import ServerTimes, error_pieces, reply_pieces, request_pieces

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

HIDDEN = torch.ones(2, 4)
SHARDS = 3


def replica(address: str, shards: set[int], preferred: set[int] = frozenset()) -> Replica:
    return Replica(address, range(2), frozenset(shards), frozenset(preferred))


def partial(shard: int) -> Tensor:
    """A partial sum whose addition is not associative: the order shows."""
    return torch.full((2, 4), (1e8, -1e8, 1.0)[shard])


FUSED = (partial(0) + partial(1)) + partial(2)


def usable(_shard: int, _address: str) -> bool:
    return True


def test_each_shard_goes_to_the_replica_that_prefers_it():
    placement = Placement(1, (replica("a", {0, 1, 2}, {2}), replica("b", {0, 1, 2}, {0, 1})))
    chosen = choose_replicas(placement, 0, range(3), usable)
    assert chosen == [Assignment("b", 0, 2), Assignment("a", 2, 1)]


def test_only_a_run_from_shard_zero_is_added_up_by_the_worker():
    placement = Placement(1, (replica("a", {0}), replica("b", {1, 2})))
    assert choose_replicas(placement, 0, range(3), usable) == [
        Assignment("a", 0, 1),
        Assignment("b", 1, 1),
        Assignment("b", 2, 1),
    ]


def test_a_shard_without_usable_replica_is_left_out():
    placement = Placement(1, (replica("a", {0}), replica("b", {1})))
    chosen = choose_replicas(placement, 0, range(3), lambda shard, address: address != "b")
    assert chosen == [Assignment("a", 0, 1)]
    assert choose_replicas(placement, 5, range(3), usable) == []


REPLICAS = st.lists(
    st.builds(
        replica,
        st.sampled_from("abcde"),
        st.sets(st.integers(0, 5)),
        st.sets(st.integers(0, 5)),
    ),
    max_size=5,
    unique_by=lambda one: one.address,
)


@UNHURRIED
@given(replicas=REPLICAS, shards=st.sets(st.integers(0, 5)))
def test_every_shard_that_somebody_holds_is_assigned_exactly_once(replicas, shards):
    chosen = choose_replicas(Placement(1, tuple(replicas)), 0, shards, usable)
    assigned = [shard for assignment in chosen for shard in assignment.shards]
    held = {shard for shard in shards if any(shard in one.shards for one in replicas)}
    assert sorted(assigned) == sorted(held)
    holders = {one.address: one.shards for one in replicas}
    for assignment in chosen:
        assert set(assignment.shards) <= holders[assignment.address]
        assert assignment.first_shard == 0 or assignment.num_shards == 1


@dataclass
class FakeStream:
    """Collects what is sent; the test answers."""

    sent: list[bytes] = field(default_factory=list)
    is_reset: bool = False

    def send(self, frames: list[bytes]) -> None:
        self.sent.extend(frames)

    def reset(self) -> None:
        self.is_reset = True

    @property
    def last(self) -> Header:
        return decode_frame(self.sent[-1]).header


def answer(header: Header, status: FrameStatus = FrameStatus.OK, **changes: int) -> bytes:
    """What a worker replies to a request."""
    reply = header._replace(type=FrameType.REPLY, status=status, message_bytes=0, **changes)
    if status != FrameStatus.OK:
        return encode_frame(reply._replace(num_tokens=0), error_pieces("Because."))
    total = partial(header.first_shard)
    for shard in range(header.first_shard + 1, header.first_shard + header.num_shards):
        total = total + partial(shard)
    return encode_frame(reply, reply_pieces(ServerTimes(1, 2, 3, 4), total))


class Rig:
    """A dispatcher with a clock and fake workers `a` and `b` that hold everything."""

    def __init__(self, **options: float) -> None:
        self.now_s = 0.0
        settings = {"frame_timeout_s": 5.0, "retry_window_s": 10.0, **options}
        self.dispatcher = Dispatcher(clock_s=lambda: self.now_s, **settings)
        self.dispatcher.place(
            Placement(7, (replica("a", {0, 1, 2}, {0}), replica("b", {0, 1, 2}, {1, 2})))
        )
        self.streams: dict[str, FakeStream] = {}
        self.links: dict[str, Link] = {}

    def connect(self, address: str, num_credits: int = 4) -> FakeStream:
        stream = self.streams[address] = FakeStream()
        self.links[address] = self.dispatcher.connected(address, stream, num_credits)
        return stream

    def start(self, layer: int = 0) -> Call:
        header = Header(FrameType.REQUEST, 0, 1, layer, 0, 0, 2, 4)
        call = Call(header, request_pieces((), HIDDEN, None, None), set(range(SHARDS)))
        self.dispatcher.start(call)
        return call

    def reply(self, address: str, status: FrameStatus = FrameStatus.OK, **changes: int) -> None:
        """Answer everything that `address` was sent so far."""
        stream = self.streams[address]
        sent, stream.sent = stream.sent, []
        for message in sent:
            reply = answer(decode_frame(message).header, status, **changes)
            self.dispatcher.receive(self.links[address], reply)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_partials_are_added_in_canonical_order_whoever_answers_first(rig: Rig):
    rig.connect("a")
    rig.connect("b")
    call = rig.start()
    assert len(rig.streams["b"].sent) == 2
    rig.reply("b")
    assert not call.is_done
    rig.reply("a")
    assert torch.equal(call.wait(), FUSED)


def test_a_request_carries_epoch_shards_and_time_left(rig: Rig):
    stream = rig.connect("a")
    rig.start()
    header = stream.last
    assert (header.epoch, header.first_shard, header.num_shards) == (7, 0, 3)
    assert header.remaining_us == 5_000_000


def test_shards_of_a_dead_worker_go_to_the_other_as_the_same_work(rig: Rig):
    rig.connect("a")
    rig.connect("b")
    call = rig.start()
    first = decode_frame(rig.streams["a"].sent[0]).header
    rig.dispatcher.disconnected(rig.links["a"], "it died")
    again = rig.streams["b"].last
    assert (again.step, again.layer, again.micro_batch) == (first.step, first.layer, 0)
    rig.reply("b")
    assert torch.equal(call.wait(), FUSED)


@pytest.mark.parametrize(
    "status",
    [FrameStatus.DRAINING, FrameStatus.FAILED, FrameStatus.NOT_HELD, FrameStatus.MALFORMED],
)
def test_a_refused_frame_goes_to_the_other_worker(rig: Rig, status: FrameStatus):
    rig.connect("a")
    rig.connect("b")
    call = rig.start()
    rig.reply("a", status)
    assert rig.streams["a"].sent == []
    rig.reply("b")
    assert torch.equal(call.wait(), FUSED)


def test_a_worker_that_refused_is_asked_again_when_there_is_no_other(rig: Rig):
    rig.connect("a")
    call = rig.start()
    rig.reply("a", FrameStatus.FAILED)
    assert rig.streams["a"].sent == []
    rig.dispatcher.sweep()
    rig.reply("a")
    assert torch.equal(call.wait(), FUSED)


def test_a_silent_worker_is_reset_after_its_timeout(rig: Rig):
    rig.connect("a")
    rig.connect("b")
    call = rig.start()
    rig.reply("b")
    rig.now_s = 5.1
    rig.dispatcher.sweep()
    assert rig.streams["a"].is_reset
    assert rig.dispatcher.num_connected == 1
    rig.reply("b")
    assert torch.equal(call.wait(), FUSED)


def test_an_answer_from_a_stream_that_was_reset_is_ignored(rig: Rig):
    rig.connect("a")
    call = rig.start()
    old, late = rig.links["a"], answer(rig.streams["a"].last)
    rig.now_s = 5.1
    rig.dispatcher.sweep()
    rig.connect("a")
    rig.dispatcher.receive(old, late)
    assert not call.is_done
    rig.reply("a")
    assert torch.equal(call.wait(), FUSED)


def test_without_workers_the_call_fails_when_its_window_closes(rig: Rig):
    call = rig.start(layer=1)
    rig.now_s = 10.1
    rig.dispatcher.sweep()
    with pytest.raises(Unavailable, match="layer 1 within 10 s; last: no expert worker") as caught:
        call.wait()
    assert caught.value.metadata["layer"] == "1"


def test_the_last_failure_is_named(rig: Rig):
    rig.connect("a")
    call = rig.start()
    rig.reply("a", FrameStatus.FAILED)
    rig.now_s = 10.1
    rig.dispatcher.sweep()
    with pytest.raises(Unavailable, match="a answered FAILED: Because"):
        call.wait()


def test_a_worker_that_connects_within_the_window_serves_the_call(rig: Rig):
    call = rig.start()
    rig.connect("b")
    rig.reply("b")
    assert torch.equal(call.wait(), FUSED)


def test_a_table_that_comes_within_the_window_serves_the_call():
    rig = Rig()
    placement = rig.dispatcher.placement
    rig.dispatcher.place(Placement(8, ()))
    rig.connect("a")
    call = rig.start()
    assert rig.streams["a"].sent == []
    rig.dispatcher.place(Placement(9, placement.replicas))
    assert rig.streams["a"].last.epoch == 9
    rig.reply("a")
    assert torch.equal(call.wait(), FUSED)


def test_a_stale_epoch_waits_for_the_new_table(rig: Rig):
    rig.connect("a")
    call = rig.start()
    rig.reply("a", FrameStatus.STALE_EPOCH, epoch=9)
    rig.dispatcher.sweep()
    assert rig.streams["a"].sent == []
    rig.dispatcher.place(Placement(9, rig.dispatcher.placement.replicas))
    assert rig.streams["a"].last.epoch == 9
    rig.reply("a")
    assert torch.equal(call.wait(), FUSED)


def test_a_stale_epoch_goes_on_under_the_newer_number_when_no_table_comes(rig: Rig):
    rig.connect("a")
    call = rig.start()
    rig.reply("a", FrameStatus.STALE_EPOCH, epoch=9)
    rig.now_s = 1.1
    rig.dispatcher.sweep()
    assert rig.streams["a"].last.epoch == 9
    rig.reply("a")
    assert torch.equal(call.wait(), FUSED)


def test_no_more_messages_are_in_flight_than_credits(rig: Rig):
    rig.connect("a", num_credits=1)
    calls = [rig.start(), rig.start()]
    assert len(rig.streams["a"].sent) == 1
    rig.reply("a")
    assert len(rig.streams["a"].sent) == 1
    rig.reply("a")
    assert all(torch.equal(call.wait(), FUSED) for call in calls)


@pytest.mark.parametrize("changes", [{"lane": 1}, {"step": 9}, {"first_shard": 1}])
def test_an_answer_to_no_question_resets_the_stream(rig: Rig, changes: dict[str, int]):
    stream = rig.connect("a")
    call = rig.start()
    rig.dispatcher.receive(rig.links["a"], _foreign(stream, changes))
    assert stream.is_reset
    rig.connect("b")
    rig.reply("b")
    assert torch.equal(call.wait(), FUSED)


def _foreign(stream: FakeStream, changes: dict[str, int]) -> bytes:
    header = stream.last._replace(type=FrameType.REPLY, message_bytes=0, **changes)
    return encode_frame(header, reply_pieces(ServerTimes(1, 2, 3, 4), HIDDEN))


def test_damaged_bytes_reset_the_stream(rig: Rig):
    stream = rig.connect("a")
    rig.start()
    rig.dispatcher.receive(rig.links["a"], answer(stream.last)[:-1])
    assert stream.is_reset
    rig.dispatcher.close()


@pytest.mark.parametrize("total", [torch.ones(1, 4), torch.ones(2, 5)])
def test_a_sum_of_the_wrong_shape_is_not_taken(rig: Rig, total: Tensor):
    stream = rig.connect("a")
    rig.connect("b")
    call = rig.start()
    header = stream.last._replace(
        type=FrameType.REPLY,
        message_bytes=0,
        num_tokens=total.shape[0],
        hidden_size=total.shape[1],
    )
    times = ServerTimes(1, 2, 3, 4)
    rig.dispatcher.receive(rig.links["a"], encode_frame(header, reply_pieces(times, total)))
    rig.reply("b")
    assert torch.equal(call.wait(), FUSED)


def test_a_sum_of_the_wrong_length_is_not_taken(rig: Rig):
    stream = rig.connect("a")
    rig.connect("b")
    call = rig.start()
    header = stream.last._replace(type=FrameType.REPLY, message_bytes=0)
    rig.dispatcher.receive(rig.links["a"], encode_frame(header, [b"\0" * 36]))
    rig.reply("b")
    assert torch.equal(call.wait(), FUSED)


def test_a_message_too_large_to_send_fails_its_call(rig: Rig):
    rig.connect("a")
    header = Header(FrameType.REQUEST, 0, 1, 0, 0, 0, 2, 4)
    call = Call(header, [b"\0" * (1 << 25)], {0})
    rig.dispatcher.start(call)
    with pytest.raises(Unavailable, match="cannot be sent"):
        call.wait()


def test_closing_fails_what_is_in_flight(rig: Rig):
    rig.connect("a")
    call = rig.start()
    rig.dispatcher.close()
    with pytest.raises(Unavailable, match="stopping"):
        call.wait()


def test_coverage_needs_every_shard_of_every_layer(rig: Rig):
    assert not rig.dispatcher.covers(2, SHARDS)
    rig.connect("a")
    assert rig.dispatcher.covers(2, SHARDS)
    assert not rig.dispatcher.covers(3, SHARDS)


def test_an_end_of_trace_reaches_every_worker(rig: Rig):
    rig.connect("a")
    rig.connect("b")
    rig.dispatcher.broadcast(b"frame")
    assert [stream.sent for stream in rig.streams.values()] == [[b"frame"]] * 2


@UNHURRIED
@given(data=st.data())
def test_whatever_fails_in_between_the_sum_is_the_fused_one(data: st.DataObject):
    rig = Rig()
    rig.connect("a", num_credits=4)
    rig.connect("b", num_credits=4)
    call = rig.start()
    for _ in range(data.draw(st.integers(0, 12))):
        address = data.draw(st.sampled_from("ab"))
        event = data.draw(st.sampled_from(["ok", "refuse", "stale", "die", "sweep"]))
        if event == "ok":
            rig.reply(address)
        elif event == "refuse":
            rig.reply(address, FrameStatus.FAILED)
        elif event == "stale":
            rig.reply(address, FrameStatus.STALE_EPOCH, epoch=8)
        elif event == "die":
            rig.dispatcher.disconnected(rig.links[address], "it died")
            rig.connect(address, num_credits=4)
        else:
            rig.now_s += 0.3
            rig.dispatcher.sweep()
    rig.now_s += 1.1
    for _ in range(4):
        rig.dispatcher.sweep()
        rig.reply("a")
        rig.reply("b")
    assert torch.equal(call.wait(), FUSED)
