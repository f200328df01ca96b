"""What is refused, with which error, and which field it names."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import grpc
import pytest

from tests.contract.router.parts import CALL, TIMEOUT_S, answer, chat, events, refusal, snips
from understudy.api.router.v1 import router_pb2
from understudy.api.types.v1 import types_pb2
from understudy.errors import (
    InvalidArgument,
    NotFound,
    PromptTooLong,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    UnderstudyError,
    UnsupportedSchema,
)
from understudy.rpc import from_rpc_error
from understudy.testing.fake_attention import FakeReply


async def test_a_full_llm_pool_refuses_with_its_retry_delay(town: Any) -> None:
    full = ResourceExhausted("No free blocks.", retry_after_s=3)
    town.llm.reply = lambda _: FakeReply(fail_after=0, error=full)
    house = await town.open()
    error = await refusal(house, chat())
    assert isinstance(error, ResourceExhausted)
    assert error.retry_after_s == 3


async def test_an_llm_pool_that_is_away_is_unavailable(town: Any) -> None:
    house = await town.open(llm_patience_s=0.2)
    await town.llm.stop()
    error = await refusal(house, chat())
    assert type(error) is Unavailable
    assert error.request_id


async def test_too_many_requests_are_refused_with_the_limit_named(town: Any) -> None:
    town.llm.reply = lambda _: FakeReply(hold_after=0)
    house = await town.open(max_requests=1)
    first = house.stub.Generate(chat(), timeout=TIMEOUT_S)
    await first.read()
    error = await refusal(house, chat())
    assert isinstance(error, ResourceExhausted)
    assert error.metadata["limit"] == "requests"
    town.llm.release()
    await events(first)
    await answer(house, chat())


async def test_llm_cap_and_escalation_budget_keep_a_broken_slm_from_flooding(town: Any) -> None:
    town.slm.reply = lambda _: FakeReply(CALL, margin=0.1)
    town.llm.reply = lambda _: FakeReply(CALL)
    house = await town.open(escalations_per_s=0.001)
    await answer(house, snips())
    error = await refusal(house, snips())
    assert isinstance(error, ResourceExhausted)
    assert error.metadata["limit"] == "escalations"
    capped = await town.open(llm_max_attempts=1)
    town.llm.reply = lambda _: FakeReply(hold_after=0)
    running = capped.stub.Generate(chat(), timeout=TIMEOUT_S)
    await running.read()
    await town.llm.wait_until(lambda: len(town.llm.submissions) == 2)
    error = await refusal(capped, chat())
    assert isinstance(error, ResourceExhausted)
    assert error.metadata["limit"] == "LLM attempts"
    running.cancel()


TOOL = router_pb2.Tool(name="go", parameters_json="{}")
LONG_TOOL = router_pb2.Tool(name="go", description="x" * 1_100_000)
BAD: list[tuple[router_pb2.GenerateRequest, type[UnderstudyError], str]] = [
    (router_pb2.GenerateRequest(), InvalidArgument, "messages"),
    (chat("  "), InvalidArgument, "messages[0].content"),
    (router_pb2.GenerateRequest(prompt=" \n"), InvalidArgument, "prompt"),
    (chat(prompt="both"), InvalidArgument, "messages"),
    (chat("x" * 5000), PromptTooLong, "messages"),
    (chat("x" * 1_100_000), InvalidArgument, "messages"),
    (
        chat(tools=[router_pb2.Tool(name="a", description="x" * 1_100_000)]),
        InvalidArgument,
        "tools",
    ),
    (chat(model="gpt-9"), NotFound, "model"),
    (chat(workload="poetry"), NotFound, "workload"),
    (chat(response_schema_json="{"), UnsupportedSchema, "response_schema_json"),
    (chat(response_schema_json='{"not": {}}'), UnsupportedSchema, "response_schema_json"),
    (
        chat(response_schema_json='{"type": "string", "format": "odd"}'),
        UnsupportedSchema,
        "response_schema_json",
    ),
    (chat(response_schema_json="{}", tools=[TOOL]), InvalidArgument, "response_schema_json"),
    (chat(sampling=types_pb2.SamplingParams(max_tokens=0)), InvalidArgument, "sampling.max_tokens"),
    (
        chat(sampling=types_pb2.SamplingParams(temperature=9)),
        InvalidArgument,
        "sampling.temperature",
    ),
    (chat(sampling=types_pb2.SamplingParams(top_p=0)), InvalidArgument, "sampling.top_p"),
    (chat(sampling=types_pb2.SamplingParams(stop=["x" * 129])), InvalidArgument, "sampling.stop"),
    (chat(tools=[TOOL, TOOL]), InvalidArgument, "tools[1].name"),
    (chat(tools=[router_pb2.Tool(name="a b")]), InvalidArgument, "tools[0].name"),
    (chat(tools=[router_pb2.Tool(name=f"t{n}") for n in range(65)]), InvalidArgument, "tools"),
    (
        chat(tools=[router_pb2.Tool(name="a", parameters_json='{"if": {}}')]),
        UnsupportedSchema,
        "tools[0].parameters_json",
    ),
    (
        chat(tool_choice=router_pb2.ToolChoice(mode=router_pb2.ToolChoice.MODE_REQUIRED)),
        InvalidArgument,
        "tool_choice",
    ),
    (
        chat(
            tools=[TOOL],
            tool_choice=router_pb2.ToolChoice(mode=router_pb2.ToolChoice.MODE_NAMED, name="fly"),
        ),
        InvalidArgument,
        "tool_choice.name",
    ),
    (chat(idempotency_key="k" * 129), InvalidArgument, "idempotency_key"),
    (
        router_pb2.GenerateRequest(messages=[router_pb2.Message(content="hi")]),
        InvalidArgument,
        "messages[0].role",
    ),
]


async def test_bad_requests_are_refused_with_the_field_named(town: Any) -> None:
    house = await town.open()
    for request, error_class, field in BAD:
        error = await refusal(house, request)
        assert type(error) is error_class, (field, error)
        assert error.metadata["field"] == field
        assert error.request_id
    assert not town.llm.submissions and not town.slm.submissions


async def test_keys_are_needed_where_there_are_any(town: Any) -> None:
    digest = hashlib.sha256(b"secret").hexdigest()
    house = await town.open(api_keys=json.dumps([{"tenant": "acme", "sha256": digest}]))
    for metadata in [(), (("authorization", "Bearer wrong"),), (("authorization", "secret"),)]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await events(house.stub.Generate(chat(), timeout=TIMEOUT_S, metadata=metadata))
        assert isinstance(from_rpc_error(caught.value), Unauthenticated)
    metadata = (("authorization", "Bearer secret"),)
    await events(house.stub.Generate(chat(), timeout=TIMEOUT_S, metadata=metadata))
    assert town.llm.submissions[0].tenant == "acme"


async def test_a_message_beyond_the_body_limit_is_not_even_read(town: Any) -> None:
    house = await town.open(max_body_bytes=2_000_000)
    error = await refusal(house, chat("x" * 2_100_000))
    assert isinstance(error, ResourceExhausted)
    assert "2000000" in error.message
