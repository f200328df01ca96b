"""Sessions: bounded queues, slow readers, drain, and outputs nobody asked for any more."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from services.attention.metrics import SessionMetrics
from services.attention.outputs import Failed, Finished, StepOutput, TokenRun
from services.attention.sequence import FinishReason, SequenceKey
from services.attention.sessions import Session, SessionHub
from understudy.errors import Aborted, InvalidArgument, Unavailable


class Cancels:
    """Notes what the engine was told to cancel."""

    def __init__(self) -> None:
        self.keys: list[SequenceKey] = []

    def cancel(self, key: SequenceKey) -> None:
        self.keys.append(key)


@pytest.fixture
def engine() -> Cancels:
    return Cancels()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def hub(engine: Cancels, registry: CollectorRegistry) -> SessionHub:
    return SessionHub(max_outputs=2, engine=engine, metrics=SessionMetrics(registry))


def tokens(step: int, *sequence_ids: int) -> StepOutput:
    return StepOutput(step, tokens=[TokenRun(sequence_id, [7]) for sequence_id in sequence_ids])


def finish(step: int, sequence_id: int) -> StepOutput:
    return StepOutput(step, finished=[Finished(sequence_id, FinishReason.STOP, 0, 0, 1)])


def failures(output: StepOutput | None) -> list[tuple[int, type]]:
    assert output is not None
    return [(failed.sequence_id, type(failed.error)) for failed in output.failed]


async def test_outputs_come_in_order_and_steps_always_grow(hub: SessionHub):
    session = hub.open()
    session.begin(1)
    hub.deliver({session.session_id: tokens(4, 1)})
    session.begin(2)
    session.fail(2, InvalidArgument("no"))
    first, second = await session.take(), await session.take()
    assert first is not None
    assert second is not None
    assert first.step < second.step
    assert failures(second) == [(2, InvalidArgument)]
    assert session.num_live == 1


async def test_outputs_of_ended_sequences_and_closed_sessions_are_dropped(
    hub: SessionHub, engine: Cancels
):
    session = hub.open()
    session.begin(1)
    session.begin(2)
    session.cancel(1)
    session.cancel(9)
    hub.deliver({session.session_id: tokens(1, 1, 2), 99: tokens(1, 1)})
    output = await session.take()
    assert output is not None
    assert [run.sequence_id for run in output.tokens] == [2]
    hub.close(session)
    hub.deliver({session.session_id: tokens(2, 2)})
    assert engine.keys == [SequenceKey(session.session_id, 1), SequenceKey(session.session_id, 2)]


async def test_slow_reader_loses_its_sequences_and_nobody_else_does(
    hub: SessionHub, engine: Cancels, registry: CollectorRegistry
):
    slow, quick = hub.open(), hub.open()
    for session in (slow, quick):
        session.begin(1)
    slow.begin(2)
    for step in (1, 2, 3):
        hub.deliver({slow.session_id: tokens(step, 1), quick.session_id: tokens(step, 1)})
        assert await quick.take() is not None
    assert slow.num_live == 0
    assert quick.num_live == 1
    assert set(engine.keys) == {(slow.session_id, 1), (slow.session_id, 2)}
    assert registry.get_sample_value("understudy_attention_slow_readers_total") == 1
    for _ in range(2):
        assert failures(await slow.take()) == []
    assert failures(await slow.take()) == [(1, Aborted), (2, Aborted)]


async def test_commands_of_a_full_session_wait_until_it_was_read(hub: SessionHub):
    session = hub.open()
    session.begin(1)
    await asyncio.wait_for(session.wait_for_room(), 30)
    for step in (1, 2):
        hub.deliver({session.session_id: tokens(step, 1)})
    waiting = asyncio.create_task(session.wait_for_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await session.take()
    await asyncio.wait_for(waiting, 30)


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_reused_id_breaks_the_protocol(hub: SessionHub, is_cancelled: bool):
    session = hub.open()
    session.begin(0)
    session.begin(7)
    if is_cancelled:
        session.cancel(7)
    with pytest.raises(InvalidArgument, match="not above 7"):
        session.begin(7)
    session.begin(8)


async def test_half_closed_session_ends_after_its_sequences(hub: SessionHub):
    session = hub.open()
    session.begin(1)
    session.half_close()
    hub.deliver({session.session_id: finish(1, 1)})
    assert await session.take() is not None
    assert await session.take() is None


async def test_drain_waits_for_running_sequences_then_ends_streams(hub: SessionHub):
    session = hub.open()
    session.begin(1)
    draining = asyncio.create_task(hub.drain(30.0))
    await asyncio.sleep(0)
    assert isinstance(hub.refusal, Unavailable)
    hub.deliver({session.session_id: finish(1, 1)})
    assert await session.take() is not None
    with pytest.raises(Unavailable, match="draining"):
        await session.take()
    assert not draining.done()
    hub.close(session)
    assert await draining == 0


async def test_drain_hands_over_what_outlives_the_grace(hub: SessionHub, engine: Cancels):
    session = hub.open()
    session.begin(1)
    assert await hub.drain(0.0) == 1
    assert failures(await session.take()) == [(1, Aborted)]
    assert engine.keys == [(session.session_id, 1)]


async def test_session_opened_while_draining_ends_at_once(hub: SessionHub):
    await hub.drain(0.0)
    with pytest.raises(Unavailable):
        await hub.open().take()


async def test_failing_all_reaches_every_session(hub: SessionHub):
    sessions = [hub.open(), hub.open()]
    for session in sessions:
        session.begin(5)
    hub.fail_all(Aborted("The sequence was lost."))
    for session in sessions:
        assert failures(await session.take()) == [(5, Aborted)]
    assert hub.num_live == 0


async def test_late_failure_of_a_cancelled_sequence_is_dropped(hub: SessionHub):
    session: Session = hub.open()
    session.begin(1)
    session.cancel(1)
    session.push(StepOutput(1, failed=[Failed(1, Aborted("late"))]))
    session.half_close()
    assert await session.take() is None
