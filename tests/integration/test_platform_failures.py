"""Parts of the running platform go away while it is asked: no request fails, no answer changes."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from openai import AsyncOpenAI

from tests.integration.live_platform import (
    CALL_TIMEOUT_S,
    START_TIMEOUT_S,
    Cast,
    CuttableProxy,
    LivePlatform,
)
from tests.integration.processes import wait_until
from understudy import (
    Answer,
    AsyncClient,
    DecisionReason,
    Delta,
    GenerateParams,
    Started,
    Unavailable,
)
from understudy.local.state import Phase
from understudy.workloads import find_workload

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_TOKENS = 10
PROMPTS = (
    "Tell me of the sea.",
    "What is a lighthouse for?",
    "Name three colours.",
    "Who wrote Hamlet?",
)
LONG = "Understudy serves the small model first and the large one when it must. " * 4
OTHER = "The store keeps what was computed once, so that nobody computes it again. " * 4
ENDED = "understudy_attention_ended_sequences_total"


@pytest.fixture
async def client(live: LivePlatform) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(live.grpc_address, timeout_s=CALL_TIMEOUT_S) as made:
        yield made


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait without holding up the event loop."""
    await asyncio.to_thread(wait_until, condition, what, START_TIMEOUT_S)


def chat(text: str, max_tokens: int = NUM_TOKENS, key: str = "") -> GenerateParams:
    messages = [{"role": "user", "content": text}]
    return {"messages": messages, "max_tokens": max_tokens, "idempotency_key": key}


def call(cast: Cast) -> GenerateParams:
    messages = [{"role": "user", "content": cast.accepted.row.text}]
    return {"messages": messages, "tools": find_workload("snips").tools}


async def read_and(
    client: AsyncClient, params: GenerateParams, at_second_delta: Callable[[], None]
) -> Answer:
    """Read an answer; do something at its second delta."""
    async with client.generate(**params) as stream:
        async for event in stream:
            if isinstance(event, Delta) and event.index == 1:
                at_second_delta()
        return await stream.answer()


async def test_without_the_control_redis_serving_goes_on_and_resume_comes_back_with_it(
    live: LivePlatform, client: AsyncClient, cast: Cast
) -> None:
    before = await client.complete(**chat(PROMPTS[0], key="before"))
    whole = await client.complete(**chat(PROMPTS[1]))
    try:
        interrupted = chat(PROMPTS[1], key="interrupted")
        in_flight = await read_and(client, interrupted, live.control.kill)
        assert in_flight.text == whole.text
        assert not in_flight.decision.is_resumable
        await check_serving_without_journal(live, client, cast)
    finally:
        live.control.start()

    async def is_resumable() -> bool:
        return (await client.complete(**call(cast))).decision.is_resumable

    async with asyncio.timeout(CALL_TIMEOUT_S):
        while not await is_resumable():
            pass
    assert await client.complete(**chat(PROMPTS[0], key="before")) == before
    assert (await client.complete(**interrupted)).text == whole.text
    async with CuttableProxy(live.grpc_address) as proxy, AsyncClient(proxy.address) as cut:
        assert (await read_and(cut, chat(PROMPTS[1]), proxy.cut)).text == whole.text
        assert proxy.num_accepted == 2


async def check_serving_without_journal(
    live: LivePlatform, client: AsyncClient, cast: Cast
) -> None:
    answer = await client.complete(**call(cast))
    assert answer.tool_calls[0].arguments == cast.accepted.answer.tool_calls[0].arguments
    assert not answer.decision.is_resumable
    async with client.generate(**chat(PROMPTS[0])) as stream:
        started = await anext(stream)
        assert isinstance(started, Started)
        assert started.resume_token == ""
        assert (await stream.answer()).text
    async with CuttableProxy(live.grpc_address) as proxy, AsyncClient(proxy.address) as cut:
        with pytest.raises(Unavailable, match="cannot be resumed") as caught:
            await read_and(cut, chat(PROMPTS[1]), proxy.cut)
        assert caught.value.request_id


async def test_without_the_kv_redis_no_request_fails_and_no_answer_changes(
    live: LivePlatform, client: AsyncClient
) -> None:
    def num_failed() -> float:
        operations = "understudy_kvstore_redis_operations_total"
        return live.metric("kvstore", operations, outcome="failed")

    known = chat(LONG)
    new = chat(OTHER)
    before, failed_before = await client.complete(**known), num_failed()
    try:
        answers = [await read_and(client, known, live.kv.kill)]
        answers += await asyncio.gather(client.complete(**known), client.complete(**new))
        assert num_failed() > failed_before
    finally:
        live.kv.start()
    assert [answer.text for answer in answers[:2]] == [before.text] * 2
    after = await asyncio.gather(client.complete(**known), client.complete(**new))
    assert [answer.text for answer in after] == [before.text, answers[2].text]


async def test_an_expert_worker_killed_among_requests_fails_none_and_changes_none(
    live: LivePlatform, client: AsyncClient
) -> None:
    alone = [await client.complete(**chat(prompt)) for prompt in PROMPTS]
    num_failed = failed_sequences(live)
    kill = once(lambda: live.kill("experts-0"))
    together = await asyncio.gather(*(read_and(client, chat(prompt), kill) for prompt in PROMPTS))
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert failed_sequences(live) == num_failed
    await until(lambda: is_back(live, "experts-0"), "the killed worker to be back")
    again = await client.complete(**chat(PROMPTS[0]))
    assert again.text == alone[0].text


async def test_an_attention_worker_killed_mid_stream_changes_no_answer(
    live: LivePlatform, client: AsyncClient, cast: Cast
) -> None:
    drawn: GenerateParams = {**chat(PROMPTS[0]), "temperature": 1.0, "seed": 7}
    tools: GenerateParams = {**call(cast), "model": "llm"}
    alone = [await client.complete(**drawn), await client.complete(**tools)]
    kill = once(lambda: live.kill("attention-llm"))
    async with AsyncClient(live.grpc_address, timeout_s=START_TIMEOUT_S) as patient:
        together = await asyncio.gather(read_and(patient, drawn, kill), patient.complete(**tools))
    await until(lambda: is_back(live, "attention-llm"), "the killed worker to be back")
    for answer, expected in zip(together, alone, strict=True):
        assert answer.text == expected.text
        assert arguments(answer) == arguments(expected)
        assert answer.usage.completion_tokens == expected.usage.completion_tokens


async def test_an_slm_worker_that_died_is_stood_in_for_and_comes_back(
    live: LivePlatform, client: AsyncClient, cast: Cast
) -> None:
    live.kill("attention-slm")
    answer = await client.complete(**call(cast))
    assert answer.tool_calls
    assert answer.decision.reason in (DecisionReason.SLM_UNAVAILABLE, DecisionReason.SLM_ACCEPTED)
    await until(lambda: is_back(live, "attention-slm"), "the killed worker to be back")
    async with asyncio.timeout(CALL_TIMEOUT_S):
        while (await client.complete(**call(cast))).decision.pool != "slm":
            pass


def once(act: Callable[[], None]) -> Callable[[], None]:
    """Return what acts the first time it is called."""
    acts = iter([act])
    return lambda: next(acts, lambda: None)()


def arguments(answer: Answer) -> list[dict[str, object]]:
    return [{call.name: call.arguments} for call in answer.tool_calls]


def failed_sequences(live: LivePlatform) -> float:
    ended = live.metric("attention-llm", ENDED)
    return ended - sum(live.metric("attention-llm", ENDED, reason=r) for r in ("stop", "length"))


def is_back(live: LivePlatform, name: str) -> bool:
    service = live.service(name)
    return service.phase is Phase.READY and service.restarts == 1


async def test_a_client_that_leaves_midway_frees_the_workers_blocks(
    live: LivePlatform, client: AsyncClient
) -> None:
    async with client.generate(**chat(PROMPTS[0], max_tokens=800)) as stream:
        async for event in stream:
            if isinstance(event, Delta):
                break
        busy = live.info("attention-llm")
        assert busy.num_running == 1
        assert busy.num_free_blocks < busy.num_blocks
    await until(lambda: live.is_idle("attention-llm"), "the blocks to be free")


async def test_an_openai_client_that_leaves_midway_frees_the_workers_blocks(
    live: LivePlatform,
) -> None:
    params = {"messages": [{"role": "user", "content": PROMPTS[0]}], "max_tokens": 800}
    async with AsyncOpenAI(base_url=live.openai_url, api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(model="llm", stream=True, **params)
        async with stream:
            await anext(aiter(stream))
            assert live.info("attention-llm").num_running == 1
        await until(lambda: live.is_idle("attention-llm"), "the blocks to be free")
