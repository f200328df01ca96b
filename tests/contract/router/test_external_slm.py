"""An SLM behind an engine: trusted with margins of its own kind, never without them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.router.external import breaker
from tests.contract.router.conftest import SLM_VERSION, write_version
from tests.contract.router.external import external, native, start
from tests.contract.router.parts import answer, chat, snips
from understudy.api.types.v1 import types_pb2
from understudy.testing.fake_attention import FakeReply
from understudy.testing.fake_engine import (
    DONE,
    EngineReply,
    FakeEngine,
    call_chunk,
    finish_chunk,
    usage_chunk,
)

GAP = types_pb2.Attempt
REASON = types_pb2.Decision
LLM_CALL = '{"name":"GetWeather","arguments":{}}'


def called(*margins: float | None, num_tokens: int | None = None) -> EngineReply:
    """A call with a token for each margin."""
    pieces = ["", '{"genre":', '"jazz"}']
    named = zip(["PlayMusic", "", ""], pieces, margins, strict=True)
    events = [call_chunk(name, piece, margin=margin) for name, piece, margin in named]
    num_tokens = len(pieces) if num_tokens is None else num_tokens
    return EngineReply([*events, finish_chunk("tool_calls"), usage_chunk(50, num_tokens), DONE])


async def open_slm(
    town: Any,
    engine: FakeEngine,
    evidence: str = "openai",
    slm_patience_s: float = 0.3,
    **more: Any,
) -> Any:
    version = write_version(town.directory / "external", evidence=evidence)
    settings = {"logprobs": True, "version_dir": str(version), **more}
    engine.cards["data"][0]["id"] = SLM_VERSION
    slm = external("slm", await start(town, engine), model=SLM_VERSION, **settings)
    town.llm.reply = lambda _: FakeReply(LLM_CALL)
    pools = json.dumps([slm, native(town, "llm")])
    return await town.open(pools=pools, slm_patience_s=slm_patience_s)


async def test_an_answer_with_sure_margins_stands(town: Any) -> None:
    engine = FakeEngine(lambda _: called(0.9, 0.8, 0.7))
    house = await open_slm(town, engine)
    (delta,), end = await answer(house, snips())
    assert delta.tool_calls[0].name == "PlayMusic"
    decision = end.decision
    assert decision.reason == REASON.REASON_SLM_ACCEPTED
    assert decision.attempts[0].confidence == pytest.approx(0.7)
    assert list(decision.attempts[0].gaps) == [GAP.GAP_FORCED_TOKENS, GAP.GAP_GRAMMAR]
    body = engine.asked[0].body
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)


async def test_an_answer_with_an_unsure_token_is_escalated(town: Any) -> None:
    house = await open_slm(town, FakeEngine(lambda _: called(0.9, 0.2, 0.9)))
    (delta,), end = await answer(house, snips())
    assert delta.tool_calls[0].name == "GetWeather"
    assert end.decision.reason == REASON.REASON_LOW_CONFIDENCE
    assert [attempt.pool for attempt in end.decision.attempts] == ["slm", "llm"]


@pytest.mark.parametrize(
    "reply",
    [called(None, None, None), called(0.9, None, 0.9), called(0.9, 0.9, 0.9, num_tokens=9)],
    ids=["none", "one-missing", "fewer-than-tokens"],
)
async def test_an_answer_without_all_margins_is_not_trusted(town: Any, reply: EngineReply) -> None:
    house = await open_slm(town, FakeEngine(lambda _: reply))
    _, end = await answer(house, snips())
    decision = end.decision
    assert (decision.pool, decision.reason) == ("llm", REASON.REASON_NO_CALIBRATOR)
    slm, _ = decision.attempts
    assert not slm.HasField("confidence")
    assert GAP.GAP_MARGINS in slm.gaps


@pytest.mark.parametrize(
    "change",
    [{"logprobs": False}, {"evidence": "native"}],
    ids=["not-asked-for", "measured-on-native-workers"],
)
async def test_a_calibrator_of_other_evidence_is_not_used(
    town: Any, change: dict[str, Any]
) -> None:
    engine = FakeEngine(lambda _: called(0.9, 0.9, 0.9))
    house = await open_slm(town, engine, **change)
    _, end = await answer(house, snips())
    assert end.decision.reason == REASON.REASON_NO_CALIBRATOR
    assert engine.asked == []


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
async def test_whatever_an_slm_engine_refuses_goes_to_the_llm(town: Any, status: int) -> None:
    house = await open_slm(town, FakeEngine(lambda _: EngineReply(status=status, body=b" ")))
    _, end = await answer(house, snips())
    assert (end.decision.pool, end.decision.reason) == ("llm", REASON.REASON_SLM_UNAVAILABLE)


async def test_an_slm_engine_answers_when_it_is_asked_by_name(town: Any) -> None:
    engine = FakeEngine(lambda _: called(0.9, 0.9, 0.9))
    house = await open_slm(town, engine)
    _, end = await answer(house, snips(model="slm"))
    assert end.decision.reason == REASON.REASON_REQUESTED
    assert end.decision.attempts[0].confidence == pytest.approx(0.9)
    _, end = await answer(house, chat())
    assert end.decision.pool == "llm"


async def test_an_engine_that_gives_no_margins_is_let_alone_for_a_while(
    town: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FIRST_REST_S", 60.0)
    monkeypatch.setattr(breaker, "LONGEST_REST_S", 60.0)
    engine = FakeEngine(lambda _: called(None, None, None))
    house = await open_slm(town, engine)
    for _ in range(5):
        _, end = await answer(house, snips())
        assert end.decision.reason == REASON.REASON_NO_CALIBRATOR
    assert len(engine.asked) == 3
    assert house.metric("attempt_gaps_total", pool="slm", gap="margins") == 3


async def test_an_attempt_that_an_engine_lost_midway_is_told_with_all_its_cost(town: Any) -> None:
    lost = EngineReply([call_chunk("PlayMusic", ""), call_chunk("", '{"gen')], is_cut=True)
    counted = EngineReply([*lost.events, usage_chunk(50, 5)], is_cut=True)
    replies = iter([lost, counted])
    engine = FakeEngine(lambda _: next(replies, lost))
    house = await open_slm(town, engine, slm_patience_s=600.0)
    _, end = await answer(house, snips())
    assert len(engine.asked) == 3
    decision = end.decision
    assert (decision.pool, decision.reason) == ("llm", REASON.REASON_SLM_UNAVAILABLE)
    slm, llm = decision.attempts
    assert GAP.GAP_USAGE in slm.gaps
    assert slm.usage.completion_tokens == 2
    assert slm.cost == pytest.approx(2 * (slm.usage.prompt_tokens + 2) + 55)
    assert decision.cost == pytest.approx(slm.cost + llm.cost)


async def test_a_broken_try_adds_its_cost_to_the_answer_that_followed(town: Any) -> None:
    whole = called(0.9, 0.9, 0.9)
    replies = iter([EngineReply([*whole.events[:-1]], is_cut=True)])
    house = await open_slm(town, FakeEngine(lambda _: next(replies, whole)), slm_patience_s=600.0)
    _, end = await answer(house, snips())
    (slm,) = end.decision.attempts
    assert end.decision.reason == REASON.REASON_SLM_ACCEPTED
    assert (slm.usage.prompt_tokens, slm.usage.completion_tokens) == (50, 3)
    assert slm.cost == pytest.approx(2 * 53)
    assert GAP.GAP_USAGE not in slm.gaps
