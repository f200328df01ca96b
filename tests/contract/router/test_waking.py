"""Pools that sleep: what waits is reported, held while they wake, or refused with a delay."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import openai
import pytest
from kubernetes.aio.client import Configuration
from prometheus_client import CollectorRegistry

from services.controller.assembly import open_scaling
from services.controller.clients.kubernetes import KubernetesCluster
from services.controller.scaling_settings import ScalingSettings
from services.router.holding import LONGEST_SPREAD_S, SPREAD
from tests.contract.controller.api_server import NAMESPACE, ApiServer
from tests.contract.controller.conftest import listen
from tests.contract.router.controllers import ASLEEP, WAKING, Sizing, serve_controller
from tests.contract.router.parts import CALL, HELLO, TIMEOUT_S, answer, chat, events, refusal, snips
from understudy.api.types.v1 import types_pb2
from understudy.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    ResourceExhausted,
    Unavailable,
)
from understudy.testing.fake_attention import FakeReply

SLOW = replace(WAKING, start_s=1000.0)


@pytest.fixture
def sizing() -> Sizing:
    return Sizing()


@pytest.fixture
async def open_house(town: Any, sizing: Sizing) -> Any:
    """Opens a router whose pools sleep and which reports to `sizing`."""

    async def open_(**changes: Any) -> Any:
        await town.slm.stop()
        await town.llm.stop()
        address = await serve_controller(town.stack, sizing)
        return await town.open(controllers=(address,), startup_patience_s=0.01, **changes)

    return open_


def told(sizing: Sizing, pool: str) -> list[int]:
    return [report.get(pool, 0) for report in sizing.reports]


async def test_a_request_for_a_sleeping_pool_is_reported_held_and_answered_once_it_wakes(
    town: Any, sizing: Sizing, open_house: Any
) -> None:
    town.llm.reply = lambda _: FakeReply("Hello.")
    house = await open_house(llm_patience_s=0.05)
    sizing.outlook = WAKING
    running = asyncio.create_task(answer(house, chat()))
    await sizing.wait_until(lambda: told(sizing, "llm")[:2] == [1, 1])
    assert house.metric("held_requests", pool="llm") == 1
    await town.llm.start()
    deltas, _ = await running
    assert "".join(delta.text for delta in deltas) == "Hello."
    await sizing.wait_for({})
    assert house.metric("held_requests", pool="llm") == 0
    assert house.metric("holds_total", pool="llm", outcome="served") == 1
    assert len(sizing.routers) == 1


async def test_a_request_is_not_held_beyond_its_deadline(sizing: Sizing, open_house: Any) -> None:
    house = await open_house(request_timeout_s=0.5)
    assert isinstance(await refusal(house, chat()), DeadlineExceeded)
    await sizing.wait_for({})
    assert house.metric("holds_total", pool="llm", outcome="left") == 1


async def test_a_request_that_would_wait_beyond_its_deadline_is_refused_with_delay_and_reason(
    sizing: Sizing, open_house: Any
) -> None:
    sizing.outlook = SLOW
    house = await open_house(llm_patience_s=0.5)
    error = await refusal(house, chat())
    assert isinstance(error, ResourceExhausted)
    assert 900 < error.retry_after_s <= 1000 + LONGEST_SPREAD_S
    assert "'llm' is being woken" in error.message
    assert error.metadata["scaling"] == "Somebody waits."
    assert house.metric("holds_total", pool="llm", outcome="refused") == 1
    # Its caller was told to come back: the pool must not fall asleep before.
    reports = len(sizing.reports)
    await sizing.wait_until(lambda: len(sizing.reports) > reports)
    assert sizing.reports[-1] == {"llm": 1}
    assert house.metric("held_requests", pool="llm") == 0


async def test_the_setting_bounds_the_wait_for_a_pool_that_wakes(
    sizing: Sizing, open_house: Any
) -> None:
    sizing.outlook = replace(WAKING, start_s=5.0)
    house = await open_house(llm_patience_s=0.5, wake_patience_s=1.0)
    assert isinstance(await refusal(house, chat()), ResourceExhausted)


async def test_a_pool_that_stays_asleep_is_refused_after_the_patience_with_its_reason(
    sizing: Sizing, open_house: Any
) -> None:
    sizing.outlook = ASLEEP
    house = await open_house(llm_patience_s=0.5)
    error = await refusal(house, chat())
    assert isinstance(error, ResourceExhausted)
    assert 42 <= error.retry_after_s <= 42 * (1 + SPREAD)
    assert "The budget of 0 GPUs is spent." in error.message


async def test_an_openai_client_is_told_how_long_to_wait(sizing: Sizing, open_house: Any) -> None:
    sizing.outlook = SLOW
    house = await open_house(llm_patience_s=0.5)
    url = f"{house.http_url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="llm", messages=HELLO)
    assert int(caught.value.response.headers["retry-after"]) > 900


async def test_a_caller_that_leaves_lowers_the_count_at_once(
    sizing: Sizing, open_house: Any
) -> None:
    house = await open_house()
    calls = [house.stub.Generate(chat(), timeout=TIMEOUT_S) for _ in range(2)]
    for call in calls:
        await call.read()
    await sizing.wait_for({"llm": 2})
    calls[0].cancel()
    await sizing.wait_for({"llm": 1})
    assert house.metric("held_requests", pool="llm") == 1
    calls[1].cancel()
    await sizing.wait_for({})
    assert house.metric("holds_total", pool="llm", outcome="left") == 2


async def test_an_http_caller_that_leaves_is_no_longer_held(
    sizing: Sizing, open_house: Any
) -> None:
    house = await open_house()
    url = f"{house.http_url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        asking = asyncio.create_task(client.chat.completions.create(model="llm", messages=HELLO))
        await sizing.wait_for({"llm": 1})
        asking.cancel()
        await sizing.wait_for({})
    assert house.metric("held_requests", pool="llm") == 0


async def test_several_pools_are_reported_together(
    town: Any, sizing: Sizing, open_house: Any
) -> None:
    house = await open_house(slm_patience_s=10.0)
    requests = [chat(model="slm"), chat(model="llm"), chat(model="llm")]
    running = [asyncio.create_task(answer(house, request)) for request in requests]
    await sizing.wait_for({"slm": 1, "llm": 2})
    await town.slm.start()
    await town.llm.start()
    await asyncio.gather(*running)
    await sizing.wait_for({})


async def test_a_sleeping_slm_is_stood_in_for_and_woken(
    town: Any, sizing: Sizing, open_house: Any
) -> None:
    town.llm.reply = lambda _: FakeReply(CALL)
    sizing.outlook = replace(WAKING, start_s=1.0)
    house = await open_house()
    await town.llm.start()
    _, end = await answer(house, snips())
    assert end.decision.reason == types_pb2.Decision.REASON_SLM_UNAVAILABLE
    # Asked for although nothing waits any more: the next request should find it awake.
    await sizing.wait_until(lambda: {"slm": 1} in sizing.reports)
    assert house.metric("held_requests", pool="slm") == 0


async def test_a_controller_that_is_away_costs_the_wake_up_only(town: Any) -> None:
    town.llm.reply = lambda _: FakeReply("Hello.")
    nowhere = ("127.0.0.1:1",)
    served = await town.open(controllers=nowhere)
    await answer(served, chat())
    await town.llm.stop()
    house = await town.open(controllers=nowhere, llm_patience_s=0.3, startup_patience_s=0.01)
    assert type(await refusal(house, chat())) is Unavailable
    running = asyncio.create_task(answer(served, chat()))
    await town.llm.start()
    await running


async def test_a_report_that_nobody_takes_is_logged_once_and_counted(
    sizing: Sizing, open_house: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "services.router.reporting")
    sizing.error = FailedPrecondition("The router is too old.")
    house = await open_house()
    call = house.stub.Generate(chat(), timeout=TIMEOUT_S)
    await sizing.wait_until(lambda: len(sizing.reports) == 2)
    sizing.error = None
    await sizing.wait_until(lambda: len(sizing.reports) == 3)
    call.cancel()
    await sizing.wait_for({})
    assert house.metric("reports_total", outcome="failed") == 2
    said = [one.message for one in caplog.records]
    assert len([one for one in said if "No controller takes" in one]) == 1
    assert len([one for one in said if "held again" in one]) == 1


async def test_the_next_controller_is_asked_when_one_does_not_lead(
    town: Any, sizing: Sizing
) -> None:
    follower = Sizing()
    follower.error = Unavailable("Another controller leads; report to that one.")
    addresses = [await serve_controller(town.stack, one) for one in (follower, sizing, None)]
    await town.llm.stop()
    house = await town.open(controllers=tuple(addresses), startup_patience_s=0.01)
    call = house.stub.Generate(chat(), timeout=TIMEOUT_S)
    await sizing.wait_until(lambda: len(sizing.reports) > 1)
    asked = len(follower.reports)
    await sizing.wait_until(lambda: len(sizing.reports) > 2)
    assert len(follower.reports) == asked, "the one that answered last is asked first"
    call.cancel()


class WatchedApi(ApiServer):
    """Tells when a decision was acted on."""

    has_acted: asyncio.Event

    async def create_event(self, request: Any) -> Any:
        response = await super().create_event(request)
        self.has_acted.set()
        return response


async def test_a_held_request_wakes_a_pool_from_zero_through_the_real_controller(
    town: Any, stack: AsyncExitStack
) -> None:
    api = WatchedApi(replicas=0)
    api.has_acted = asyncio.Event()
    port = await listen(api.app(), stack)
    cluster = KubernetesCluster(NAMESPACE, "me", Configuration(host=f"http://127.0.0.1:{port}"))
    rules = {
        "name": "llm",
        "idle_s": 600,
        "start_s": 5,
        "attention": {"workload": "deployments/llm"},
    }
    settings = ScalingSettings(
        rules=json.dumps({"pools": [rules]}), namespace=NAMESPACE, identity="me", routers="app=r"
    )
    scaling = await stack.enter_async_context(open_scaling(settings, CollectorRegistry(), cluster))
    assert scaling is not None
    await scaling.leadership.campaign()
    deciding = asyncio.create_task(scaling.loop.run(3600.0))
    stack.callback(deciding.cancel)
    await town.llm.stop()
    address = await serve_controller(stack, scaling.loop)
    house = await town.open(controllers=(address,), startup_patience_s=0.01)
    call = house.stub.Generate(chat(), timeout=TIMEOUT_S)
    async with asyncio.timeout(TIMEOUT_S):
        await api.has_acted.wait()
    assert api.replicas == 1
    assert api.events[-1]["reason"] == "ScaledUp"
    await town.llm.start()
    found = await events(call)
    assert found[-1].WhichOneof("event") == "finished"


@pytest.fixture
def stack(town: Any) -> AsyncExitStack:
    """What closes after the router."""
    made: AsyncExitStack = town.stack
    return made
