"""A router whose LLM is an OpenAI-compatible engine, which here is the running platform itself.

What comes through the engine's HTTP edge is what the native pool gives, token for token: greedy,
sampled, under a schema, and as a tool call of a workload.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.live_platform import CALL_TIMEOUT_S, Cast, LivePlatform
from tests.integration.processes import LOOPBACK, Processes
from understudy import Client
from understudy.client import Answer
from understudy.client.results import DecisionReason, Gap
from understudy.local.models import find_checkout, find_models
from understudy.local.settings import LocalSettings
from understudy.workloads import find_workload

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SKY: list[Any] = [{"role": "user", "content": "Why is the sky blue?"}]
SCHEMA = {
    "type": "object",
    "properties": {"is_planet": {"type": "boolean"}, "kind": {"enum": ["rock", "gas"]}},
    "required": ["is_planet", "kind"],
    "additionalProperties": False,
}
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"messages": SKY, "max_tokens": 24},
    "sampled": {"messages": SKY, "max_tokens": 24, "temperature": 0.8, "top_p": 0.9, "seed": 7},
    "stopped": {"messages": SKY, "max_tokens": 24, "stop": [" the"]},
    "prompt": {"prompt": "The sea is", "max_tokens": 12},
    "schema": {
        "messages": [{"role": "user", "content": "Is Mars a planet? Answer in JSON."}],
        "schema": SCHEMA,
    },
}


def position_parameters(live: LivePlatform) -> int:
    return live.info("attention-llm").position_parameters


@pytest.fixture
def outer(live: LivePlatform, processes: Processes) -> Iterator[Client]:
    """A router with the platform's SLM worker, and the platform's own edge as the LLM."""
    models = find_models(LocalSettings(), find_checkout())
    slm = f"{LOOPBACK}:{live.service('attention-slm').port}"
    pools = [
        {"name": "slm", "workers": [slm], "version_dir": str(Path(models.slm))},
        {
            "name": "llm",
            "kind": "openai",
            "urls": [live.openai_url],
            "model": "llm",
            "position_parameters": position_parameters(live),
        },
    ]
    router = processes.start(
        "router",
        pools=json.dumps(pools),
        tokenizer=str(models.tokenizer),
        http_listen=f"{LOOPBACK}:0",
    )
    with Client(router.address, timeout_s=CALL_TIMEOUT_S) as client:
        yield client


@pytest.fixture
def inner(live: LivePlatform) -> Iterator[Client]:
    with Client(live.grpc_address, timeout_s=CALL_TIMEOUT_S) as client:
        yield client


def content(answer: Answer) -> tuple[str, list[tuple[str, str]]]:
    return answer.text, [(call.name, call.arguments_json) for call in answer.tool_calls]


@pytest.mark.parametrize("kind", REQUESTS)
def test_an_external_llm_gives_what_the_native_pool_gives(
    kind: str, outer: Client, inner: Client
) -> None:
    request = {"model": "llm", **REQUESTS[kind]}
    through, direct = outer.complete(**request), inner.complete(**request)
    assert content(through) == content(direct)
    assert through.finish_reason == direct.finish_reason
    assert through.usage.prompt_tokens == direct.usage.prompt_tokens
    assert through.usage.completion_tokens == direct.usage.completion_tokens
    (attempt,) = through.decision.attempts
    assert attempt.cost == direct.decision.attempts[0].cost
    assert Gap.MARGINS in attempt.gaps
    assert not direct.decision.attempts[0].gaps


def test_a_native_slm_stands_before_an_external_llm(outer: Client, cast: Cast) -> None:
    tools: Any = find_workload("snips").tools
    accepted = outer.complete(
        messages=[{"role": "user", "content": cast.accepted.row.text}], tools=tools
    )
    assert accepted.decision.reason is DecisionReason.SLM_ACCEPTED
    escalated = outer.complete(
        messages=[{"role": "user", "content": cast.escalated.row.text}], tools=tools
    )
    assert escalated.decision.is_escalated
    assert [attempt.pool for attempt in escalated.decision.attempts] == ["slm", "llm"]
    assert content(escalated) == content(cast.escalated.answer)
    assert escalated.decision.cost == pytest.approx(cast.escalated.answer.decision.cost)
    assert escalated.decision.attempts[1].gaps == (
        Gap.ADAPTER, Gap.FORCED_TOKENS, Gap.GRAMMAR, Gap.MARGINS,
    )  # fmt: skip
