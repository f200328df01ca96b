"""What tests of the router share: requests, and the answers and refusals they lead to."""

from __future__ import annotations

import json
from typing import Any, Final

import grpc
import pytest

from understudy.api.router.v1 import router_pb2
from understudy.errors import UnderstudyError
from understudy.rpc import from_rpc_error
from understudy.workloads import find_workload

CALL: Final = '{"name":"PlayMusic","arguments":{"genre":"jazz"}}'
TIMEOUT_S: Final = 20.0
HELLO: Final[list[Any]] = [{"role": "user", "content": "Hello?"}]


def chat(text: str = "Hello?", **fields: Any) -> router_pb2.GenerateRequest:
    turn = router_pb2.Message(role=router_pb2.Message.ROLE_USER, content=text)
    return router_pb2.GenerateRequest(messages=[turn], **fields)


def snips(text: str = "play some jazz music", **fields: Any) -> router_pb2.GenerateRequest:
    tools = [
        router_pb2.Tool(
            name=tool["function"]["name"],  # type: ignore[index]
            description=tool["function"]["description"],  # type: ignore[index]
            parameters_json=json.dumps(tool["function"]["parameters"]),  # type: ignore[index]
        )
        for tool in find_workload("snips").tools
    ]
    return chat(text, tools=tools, **fields)


async def events(call: Any) -> list[Any]:
    return [event async for event in call]


async def answer(house: Any, request: router_pb2.GenerateRequest) -> tuple[list[Any], Any]:
    """Deltas and the end of one answer."""
    found = await events(house.stub.Generate(request, timeout=TIMEOUT_S))
    assert found[0].WhichOneof("event") == "started"
    assert found[-1].WhichOneof("event") == "finished"
    deltas = [event.delta for event in found[1:-1]]
    assert [delta.index for delta in deltas] == list(range(len(deltas)))
    return deltas, found[-1].finished


async def refusal(house: Any, request: router_pb2.GenerateRequest) -> UnderstudyError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(house.stub.Generate(request, timeout=TIMEOUT_S))
    return from_rpc_error(caught.value)
