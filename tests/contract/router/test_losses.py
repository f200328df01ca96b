"""What survives a lost worker, and what ends with the caller or the deadline."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.router.parts import TIMEOUT_S, answer, chat, events, refusal
from understudy.errors import Aborted, DeadlineExceeded
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
