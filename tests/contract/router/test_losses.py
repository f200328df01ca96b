"""What survives a lost worker, and what ends with the caller or the deadline."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from tests.contract.router.parts import CALL, TIMEOUT_S, answer, chat, events, refusal, snips
from understudy.api.types.v1 import types_pb2
from understudy.errors import Aborted, DeadlineExceeded, ResourceExhausted, Unavailable
from understudy.testing.fake_attention import FakeAttention, FakeReply
from understudy.testing.tiny_tokenizer import tiny_tokenizer


@pytest.mark.parametrize(
    "loss", [{"fail_after": 3, "error": Aborted("lost")}, {"fail_after": 3}, {"break_after": 3}]
)
async def test_a_lost_sequence_continues_elsewhere_from_its_tokens(
    town: Any, loss: dict[str, Any]
) -> None:
    house_reply = {"lost": False}

    def reply(submit: Any) -> FakeReply:
        if submit.committed_tokens or house_reply["lost"]:
            return FakeReply("Hello there.")
        house_reply["lost"] = True
        return FakeReply("Hello there.", **loss)

    town.llm.reply = reply
    await town.add_llm(other := FakeAttention(tiny_tokenizer(), reply=reply))
    house = await town.open()
    deltas, end = await answer(house, chat())
    assert "".join(delta.text for delta in deltas) == "Hello there."
    assert end.usage.completion_tokens == len("Hello there.") + 1
    (again,) = [s for s in (*town.llm.submissions, *other.submissions) if s.committed_tokens]
    assert again.committed_tokens == 3
    assert tiny_tokenizer().decode(again.tokens[-3:]) == "Hel"
    assert house.metric("replacements_total", pool="llm") == 1


async def test_a_killed_worker_that_returns_finishes_its_answers(town: Any) -> None:
    town.llm.reply = lambda s: FakeReply("Hello.", hold_after=None if s.committed_tokens else 2)
    house = await town.open()
    call = house.stub.Generate(chat(), timeout=TIMEOUT_S)
    for _ in range(3):
        await call.read()
    await town.llm.stop()
    await town.llm.start()
    found = await events(call)
    assert found[-1].finished.usage.completion_tokens == len("Hello.") + 1


async def test_a_passed_deadline_ends_the_sequence_at_the_worker(town: Any) -> None:
    town.llm.reply = lambda _: FakeReply(hold_after=1)
    house = await town.open(request_timeout_s=0.3)
    error = await refusal(house, chat())
    assert isinstance(error, DeadlineExceeded)
    await town.llm.wait_until(lambda: town.llm.cancelled != [])


async def test_a_caller_that_leaves_cancels_the_sequence_at_the_worker(town: Any) -> None:
    town.llm.reply = lambda _: FakeReply(hold_after=2)
    house = await town.open()
    call = house.stub.Generate(chat(), timeout=TIMEOUT_S)
    await call.read()
    await call.read()
    call.cancel()
    await town.llm.wait_until(lambda: town.llm.cancelled == [town.llm.submissions[0].sequence_id])


async def test_time_in_a_queue_is_no_failure(town: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([FakeReply(hold_after=0, fail_after=0)])
    town.llm.reply = lambda _: next(losses, FakeReply("Hello."))
    house = await town.open(llm_patience_s=0.2)
    running = asyncio.create_task(answer(house, chat()))
    await town.llm.wait_until(lambda: len(town.llm.submissions) == 1)
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 100)
    monkeypatch.setattr("services.router.attempts.time", later)
    town.llm.release()
    deltas, _ = await running
    assert "".join(delta.text for delta in deltas) == "Hello."


async def test_a_sequence_that_had_begun_waits_for_room_in_a_full_pool(town: Any) -> None:
    full = ResourceExhausted("No free blocks.", retry_after_s=0.01)
    replies = iter([FakeReply("Hello.", fail_after=3), *[FakeReply(fail_after=3, error=full)] * 4])
    town.llm.reply = lambda _: next(replies, FakeReply("Hello."))
    house = await town.open()
    deltas, end = await answer(house, chat())
    assert "".join(delta.text for delta in deltas) == "Hello."
    assert len(town.llm.submissions) == 6
    assert end.usage.completion_tokens == len("Hello.") + 1


async def test_a_pool_that_stays_full_ends_the_wait_with_its_refusal(town: Any) -> None:
    full = ResourceExhausted("No free blocks.", retry_after_s=0.01)
    replies = iter([FakeReply("Hello.", fail_after=3)])
    town.llm.reply = lambda _: next(replies, FakeReply(fail_after=3, error=full))
    house = await town.open(llm_patience_s=0.2)
    assert isinstance(await refusal(house, chat()), ResourceExhausted)


async def test_a_sequence_that_every_worker_loses_is_unavailable_to_its_caller(town: Any) -> None:
    town.llm.reply = lambda _: FakeReply(fail_after=0, error=Aborted("lost"))
    house = await town.open(llm_patience_s=0.1)
    assert type(await refusal(house, chat())) is Unavailable


async def test_an_slm_attempt_that_was_lost_midway_counts_in_decision_and_cost(town: Any) -> None:
    town.llm.reply = lambda _: FakeReply(CALL)
    house = await town.open(slm_patience_s=0.01)
    town.slm.reply = lambda s: FakeReply(CALL, fail_after=max(5, s.committed_tokens))
    _, end = await answer(house, snips())
    decision = end.decision
    assert decision.reason == types_pb2.Decision.REASON_SLM_UNAVAILABLE
    assert [attempt.pool for attempt in decision.attempts] == ["slm", "llm"]
    lost = decision.attempts[0]
    assert lost.usage.completion_tokens == 5
    assert not lost.verdicts and not lost.HasField("confidence")
    assert lost.cost > 0
    assert decision.cost == pytest.approx(sum(attempt.cost for attempt in decision.attempts))
    assert house.metric("cost_positions_total", pool="slm") == pytest.approx(lost.cost)
