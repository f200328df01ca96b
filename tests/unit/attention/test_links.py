"""Calls that survive workers, over links whose other end is a fake."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.attention.dispatch import Call, Placement
from services.attention.links import STUCK_S
from services.attention.observers import StepInterrupted
from tests.unit.attention.dispatch_rig import FUSED, HIDDEN, SHARDS, FakeStream, Rig, answer
from understudy.errors import Unavailable
from understudy.exchange.frame import FrameStatus, FrameType, Header, decode_frame, encode_frame
from understudy.exchange.tensors import ServerTimes, reply_pieces

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


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


def test_a_message_too_large_to_send_fails_its_call_and_keeps_no_credit(rig: Rig):
    rig.connect("a", num_credits=1)
    header = Header(FrameType.REQUEST, 0, 1, 0, 0, 0, 2, 4)
    call = Call(header, [b"\0" * (1 << 25)], {0})
    rig.dispatcher.start(call)
    with pytest.raises(Unavailable, match="cannot be sent"):
        call.wait()
    later = rig.start()
    rig.reply("a")
    assert torch.equal(later.wait(), FUSED)


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


def test_a_call_that_nobody_holds_is_interrupted_at_once_and_nothing_else_is(rig: Rig):
    rig.connect("a")
    served = rig.start()
    rig.dispatcher.interrupt()
    assert not served.is_done
    rig.reply("a")
    rig.dispatcher.disconnected(rig.links["a"], "it died")
    orphan = rig.start()
    rig.dispatcher.interrupt()
    with pytest.raises(StepInterrupted):
        orphan.wait()


def test_interruptions_do_not_lengthen_the_window_of_those_who_stay(rig: Rig):
    for _ in range(3):
        rig.dispatcher.begin_step()
        call = rig.start()
        rig.now_s += 3.0
        rig.dispatcher.interrupt()
        with pytest.raises(StepInterrupted):
            call.wait()
    rig.dispatcher.begin_step()
    call = rig.start()
    rig.now_s += 1.1
    rig.dispatcher.sweep()
    with pytest.raises(Unavailable, match="within 10 s"):
        call.wait()
    rig.dispatcher.begin_step()
    assert rig.start().deadline_s == rig.now_s + 10.0


def test_a_window_is_whole_again_once_a_worker_has_answered(rig: Rig):
    rig.start()
    rig.now_s += 3.0
    rig.dispatcher.interrupt()
    rig.dispatcher.begin_step()
    rig.connect("a")
    assert rig.start().deadline_s == rig.now_s + 7.0
    rig.reply("a")
    assert rig.start().deadline_s == rig.now_s + 10.0


def test_a_call_that_takes_long_is_interrupted_but_not_twice_in_a_row(rig: Rig):
    rig.connect("a")
    slow = rig.start()
    rig.now_s += STUCK_S / 2
    rig.dispatcher.interrupt()
    assert not slow.is_done
    rig.now_s += STUCK_S / 2
    rig.dispatcher.interrupt()
    with pytest.raises(StepInterrupted):
        slow.wait()
    rig.dispatcher.begin_step()
    again = rig.start()
    rig.now_s += 2 * STUCK_S
    rig.dispatcher.interrupt()
    assert not again.is_done
    rig.reply("a")
    assert torch.equal(again.wait(), FUSED)
    rig.dispatcher.begin_step()
    later = rig.start()
    rig.now_s += STUCK_S
    rig.dispatcher.interrupt()
    assert later.is_done
