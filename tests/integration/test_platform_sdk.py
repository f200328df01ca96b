"""The SDK, blocking and asyncio, against the running platform."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator

import jsonschema_rs
import pytest

from tests.integration.live_platform import CALL_TIMEOUT_S, Cast, CuttableProxy, LivePlatform
from tests.integration.processes import wait_until
from understudy import (
    Answer,
    AsyncClient,
    Client,
    DeadlineExceeded,
    DecisionReason,
    Delta,
    Event,
    Finished,
    FinishReason,
    GenerateParams,
    InvalidArgument,
    Started,
)
from understudy.workloads import find_workload

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_TOKENS = 10
STORY: GenerateParams = {
    "messages": [{"role": "user", "content": "Tell me a story of a lighthouse."}],
    "max_tokens": NUM_TOKENS,
}
LONG_STORY: GenerateParams = {**STORY, "max_tokens": 800}
LIGHTS = {
    "name": "SwitchLight",
    "description": "Switches a light.",
    "parameters": {
        "type": "object",
        "properties": {"room": {"enum": ["kitchen", "hall"]}, "is_on": {"type": "boolean"}},
        "required": ["room", "is_on"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def client(live: LivePlatform) -> Iterator[Client]:
    with Client(live.grpc_address, timeout_s=CALL_TIMEOUT_S) as made:
        yield made


@pytest.fixture
async def aclient(live: LivePlatform) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(live.grpc_address, timeout_s=CALL_TIMEOUT_S) as made:
        yield made


def call(cast: Cast) -> GenerateParams:
    messages = [{"role": "user", "content": cast.accepted.row.text}]
    return {"messages": messages, "tools": find_workload("snips").tools}


def check_call(events: list[Event], cast: Cast) -> None:
    started, delta, finished = events
    assert isinstance(started, Started) and started.request_id and started.resume_token
    assert isinstance(delta, Delta) and isinstance(finished, Finished)
    (made,), (expected,) = delta.tool_calls, cast.accepted.answer.tool_calls
    assert (made.name, made.arguments) == (expected.name, expected.arguments)
    assert finished.finish_reason is FinishReason.TOOL_CALLS
    assert finished.usage.completion_tokens == cast.accepted.answer.usage.completion_tokens
    decision = finished.decision
    assert (decision.pool, decision.workload) == ("slm", "snips")
    assert decision.reason is DecisionReason.SLM_ACCEPTED
    assert decision.confidence is not None and decision.threshold is not None
    assert decision.confidence >= decision.threshold
    assert decision.cost_ratio < 0.15
    assert decision.is_resumable and decision.trace_id


def test_tools_stream_as_typed_events(client: Client, cast: Cast) -> None:
    with client.generate(**call(cast)) as stream:
        check_call(list(stream), cast)


async def test_tools_stream_as_typed_events_in_asyncio(aclient: AsyncClient, cast: Cast) -> None:
    async with aclient.generate(**call(cast)) as stream:
        check_call([event async for event in stream], cast)


def test_an_escalated_call_tells_of_both_attempts(cast: Cast) -> None:
    decision = cast.escalated.answer.decision
    slm, llm = decision.attempts
    assert (slm.pool, llm.pool, decision.pool) == ("slm", "llm", "llm")
    assert decision.reason in (DecisionReason.LOW_CONFIDENCE, DecisionReason.VERIFIER_REFUSED)
    assert decision.threshold is not None and slm.confidence is not None
    is_low = slm.confidence < decision.threshold
    assert is_low == (decision.reason is DecisionReason.LOW_CONFIDENCE)
    assert llm.adapter == "snips-tools"
    assert all(verdict.is_passed for verdict in llm.verdicts)
    assert decision.cost == pytest.approx(slm.cost + llm.cost)
    assert llm.cost == llm.usage.total_tokens


def test_a_chat_goes_to_the_llm_and_the_decision_says_why(client: Client) -> None:
    answer = client.complete(**STORY)
    check_llm(answer)
    assert answer.text
    assert answer.finish_reason is FinishReason.LENGTH


async def test_tools_it_never_saw_go_to_the_llm_and_the_decision_says_why(
    aclient: AsyncClient,
) -> None:
    answer = await aclient.complete(
        messages=[{"role": "user", "content": "Switch on the light in the hall."}], tools=[LIGHTS]
    )
    check_llm(answer)
    (made,) = answer.tool_calls
    assert made.name == LIGHTS["name"]
    jsonschema_rs.validate(LIGHTS["parameters"], made.arguments)


def check_llm(answer: Answer) -> None:
    decision = answer.decision
    assert (decision.pool, decision.workload, len(decision.attempts)) == ("llm", "", 1)
    assert decision.reason is DecisionReason.NO_CALIBRATOR
    assert (decision.threshold, decision.confidence, decision.cost_ratio) == (None, None, 1.0)


def test_the_same_seed_draws_the_same_answer(client: Client) -> None:
    drawn: GenerateParams = {**STORY, "temperature": 1.0, "seed": 7}
    first, again = client.complete(**drawn), client.complete(**drawn)
    other = client.complete(**{**drawn, "seed": 8})
    assert first.text == again.text != other.text


async def test_an_idempotency_key_gives_the_same_answer_without_a_second_run(
    live: LivePlatform, client: Client, aclient: AsyncClient
) -> None:
    def num_runs() -> float:
        return live.metric("attention-llm", "understudy_attention_ended_sequences_total")

    first = client.complete(**STORY, idempotency_key="once")
    before = num_runs()
    again = client.complete(**STORY, idempotency_key="once")
    assert again == first
    assert await aclient.complete(**STORY, idempotency_key="once") == first
    assert num_runs() == before
    with pytest.raises(InvalidArgument, match="used for another request"):
        client.complete(**{**STORY, "seed": 2}, idempotency_key="once")


async def test_a_deadline_that_passes_is_a_typed_error_with_the_request_id(
    live: LivePlatform, client: Client, aclient: AsyncClient
) -> None:
    with client.generate(**LONG_STORY, timeout_s=1.0) as stream:
        with pytest.raises(DeadlineExceeded) as caught:
            stream.answer()
        assert caught.value.request_id == stream.request_id
    with pytest.raises(DeadlineExceeded) as caught:
        await aclient.complete(**LONG_STORY, timeout_s=1.0)
    assert caught.value.request_id
    is_idle = functools.partial(live.is_idle, "attention-llm")
    await asyncio.to_thread(wait_until, is_idle, "the blocks of both to be free")


async def test_a_stream_cut_midway_resumes_to_the_same_text(
    live: LivePlatform, aclient: AsyncClient
) -> None:
    whole = await aclient.complete(**STORY)
    async with (
        CuttableProxy(live.grpc_address) as proxy,
        AsyncClient(proxy.address, timeout_s=CALL_TIMEOUT_S) as client,
        client.generate(**STORY) as stream,
    ):
        events: list[Event] = []
        async for event in stream:
            events.append(event)
            if len(events) == 3:
                proxy.cut()
        answer = await stream.answer()
    check_resumed(events, answer, whole, proxy.num_accepted)


async def test_a_blocking_stream_cut_midway_resumes_to_the_same_text(
    live: LivePlatform, aclient: AsyncClient
) -> None:
    whole = await aclient.complete(**STORY)
    loop = asyncio.get_running_loop()
    async with CuttableProxy(live.grpc_address) as proxy:

        def cut() -> None:
            loop.call_soon_threadsafe(proxy.cut)

        events, answer = await asyncio.to_thread(read_blocking, proxy.address, cut)
    check_resumed(events, answer, whole, proxy.num_accepted)


def read_blocking(address: str, cut: Callable[[], None]) -> tuple[list[Event], Answer]:
    with (
        Client(address, timeout_s=CALL_TIMEOUT_S) as client,
        client.generate(**STORY) as stream,
    ):
        events: list[Event] = []
        for event in stream:
            events.append(event)
            if len(events) == 3:
                cut()
        return events, stream.answer()


def check_resumed(events: list[Event], answer: Answer, whole: Answer, num_connections: int) -> None:
    """The caller saw one uninterrupted answer, though there were two connections."""
    assert num_connections == 2
    assert isinstance(events[0], Started) and isinstance(events[-1], Finished)
    deltas = [event for event in events if isinstance(event, Delta)]
    assert [delta.index for delta in deltas] == list(range(len(deltas)))
    assert "".join(delta.text for delta in deltas) == answer.text == whole.text
    assert answer.usage.completion_tokens == whole.usage.completion_tokens
    assert answer.decision.pool == "llm"
