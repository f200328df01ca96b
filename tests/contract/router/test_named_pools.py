"""Pools beside the SLM and the LLM: they answer who names them, and stand in for nobody."""

from __future__ import annotations

import openai
import pytest

from tests.contract.router.conftest import House, Town
from tests.contract.router.parts import HELLO, answer, chat, refusal
from understudy.api.types.v1 import types_pb2
from understudy.errors import Unavailable
from understudy.testing.fake_attention import FakeAttention, FakeReply
from understudy.testing.tiny_tokenizer import tiny_tokenizer


@pytest.fixture
async def coder(town: Town) -> FakeAttention:
    worker = FakeAttention(
        tiny_tokenizer(),
        reply=lambda _: FakeReply("print()"),
        model="coder",
        position_parameters=50,
    )
    town.others["code"] = await worker.start()
    town.stack.push_async_callback(worker.stop)
    return worker


@pytest.fixture
async def house(town: Town, coder: FakeAttention) -> House:
    return await town.open()


async def test_a_pool_answers_who_names_it_and_nobody_else(
    house: House, coder: FakeAttention
) -> None:
    deltas, end = await answer(house, chat(model="code"))
    assert "".join(delta.text for delta in deltas) == "print()"
    assert (end.decision.pool, end.decision.reason) == ("code", types_pb2.Decision.REASON_REQUESTED)
    num_before = len(coder.submissions)
    _, end = await answer(house, chat())
    assert end.decision.pool == "llm"
    assert len(coder.submissions) == num_before


async def test_it_is_listed_with_what_its_positions_cost(client: openai.AsyncOpenAI) -> None:
    listed = [model async for model in client.models.list()]
    assert [model.id for model in listed] == ["auto", "slm", "llm", "code"]
    done = await client.chat.completions.create(model="code", messages=HELLO)
    assert done.choices[0].message.content == "print()"


async def test_nobody_stands_in_for_it(town: Town, coder: FakeAttention) -> None:
    house = await town.open(llm_patience_s=0.3)
    await coder.stop()
    refused = await refusal(house, chat(model="code"))
    assert isinstance(refused, Unavailable)
    assert "code" in refused.message
