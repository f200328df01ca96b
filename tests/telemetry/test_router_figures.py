"""The figures that cost per success, time to first token and exemplars are made of."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.openmetrics.exposition import generate_latest

from tests.contract.router.external import open_over
from tests.contract.router.parts import CALL, TIMEOUT_S, answer, chat, refusal, snips
from understudy.errors import REASONS
from understudy.testing.fake_attention import FakeReply
from understudy.testing.fake_engine import EngineReply, FakeEngine, text_chunk

FIRST_TOKEN = "gen_ai_server_time_to_first_token_seconds_count"
OUTPUT_TOKEN = "gen_ai_server_time_per_output_token_seconds_count"
REFUSED = "understudy_router_failures_total"


def sample(house: Any, name: str, **labels: str) -> float | None:
    """Return the sum of a router's samples of this name that carry these labels."""
    found = [
        one.value
        for family in house.registry.collect()
        for one in family.samples
        if one.name == name and labels.items() <= one.labels.items()
    ]
    return sum(found) if found else None


async def test_cost_per_success_comes_from_counters(town: Any) -> None:
    house = await town.open()
    town.slm.reply = lambda _: FakeReply(CALL, margin=0.1)
    town.llm.reply = lambda _: FakeReply(CALL)
    _, escalated = await answer(house, snips())
    _, plain = await answer(house, chat())
    decisions = (escalated.decision, plain.decision)
    cost = sum(sample(house, "understudy_router_cost_positions_total", pool=p) or 0.0
               for p in ("slm", "llm"))  # fmt: skip
    assert cost == pytest.approx(sum(decision.cost for decision in decisions))
    alone = sum(decision.cost / decision.cost_ratio for decision in decisions)
    assert sample(house, "understudy_router_llm_alone_cost_positions_total") == pytest.approx(alone)
    verdicts = {
        verdict: sample(house, "understudy_router_verified_answers_total", verdict=verdict)
        for verdict in ("passed", "failed", "none")
    }
    assert verdicts == {"passed": 1.0, "failed": None, "none": 1.0}


async def test_an_answer_that_fails_its_verifiers_is_no_success(town: Any) -> None:
    house = await town.open()
    town.slm.reply = town.llm.reply = lambda _: FakeReply('{"name":"Nothing","arguments":{}}')
    await answer(house, snips())
    name = "understudy_router_verified_answers_total"
    assert sample(house, name, workload="snips", verdict="failed") == 1.0
    assert sample(house, name, verdict="passed") is None


async def test_attempts_are_timed_by_pool_and_model(town: Any) -> None:
    house = await town.open()
    town.slm.reply = lambda _: FakeReply(CALL, margin=0.1)
    town.llm.reply = lambda _: FakeReply(CALL)
    await answer(house, snips())
    for pool in ("slm", "llm"):
        labels = {"pool": pool, "gen_ai_operation_name": "chat", "gen_ai_request_model": "auto"}
        assert sample(house, FIRST_TOKEN, **labels) == 1.0
        assert sample(house, OUTPUT_TOKEN, **labels) == 1.0


async def test_a_failure_is_seen_to_increase_from_zero(town: Any) -> None:
    house = await town.open()
    assert {reason: sample(house, REFUSED, reason=reason) for reason in REASONS} == dict.fromkeys(
        REASONS, 0.0
    )
    await refusal(house, chat(model="gpt-9"))
    assert sample(house, REFUSED, reason="NOT_FOUND") == 1.0


async def test_times_of_an_answer_name_its_trace(town: Any, exporter: InMemorySpanExporter) -> None:
    house = await town.open()
    _, finished = await answer(house, snips())
    assert exporter.get_finished_spans()
    text = generate_latest(house.registry).decode()
    linked = {
        line.partition("_bucket")[0]
        for line in text.splitlines()
        if f'# {{trace_id="{finished.decision.trace_id}"}}' in line
    }
    assert linked == {
        "understudy_router_request_seconds",
        "understudy_router_first_delta_seconds",
        "understudy_router_confidence_ratio",
        "gen_ai_server_request_duration_seconds",
        "gen_ai_server_time_to_first_token_seconds",
        "gen_ai_server_time_per_output_token_seconds",
    }


async def test_the_first_token_of_an_attempt_that_does_not_end_is_timed(town: Any) -> None:
    engine = FakeEngine(lambda _: EngineReply([text_chunk("Hello ")], holds=True))
    house = await open_over(town, engine)
    call = house.stub.Generate(chat(), timeout=TIMEOUT_S)
    await call.read()
    assert (await call.read()).delta.text == "Hello "
    labels = {"pool": "llm", "gen_ai_response_model": "engine-model"}
    assert sample(house, FIRST_TOKEN, **labels) == 1.0
    assert sample(house, OUTPUT_TOKEN, **labels) is None
    call.cancel()
    await engine.wait_until(lambda: engine.num_left == 1)
    assert sample(house, FIRST_TOKEN, **labels) == 1.0
