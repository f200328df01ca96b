"""Priority on its way from a caller to a worker: gRPC, the OpenAI edge, the journal, the wire."""

from __future__ import annotations

import pytest

from services.router.clients.attention import to_submit
from services.router.http.bodies import chat_request, completion_request
from services.router.pools import Submission
from services.router.requests import Priority, Request, Sampling, request_from_json
from services.router.wire import to_request
from understudy.api.router.v1 import router_pb2
from understudy.api.types.v1 import types_pb2
from understudy.errors import InvalidArgument

WIRE = {
    "interactive": types_pb2.PRIORITY_INTERACTIVE,
    "standard": types_pb2.PRIORITY_STANDARD,
    "batch": types_pb2.PRIORITY_BATCH,
}


@pytest.mark.parametrize("priority", ["interactive", "standard", "batch"])
def test_priority_reaches_the_worker(priority: Priority) -> None:
    request = to_request(router_pb2.GenerateRequest(prompt="hi", priority=WIRE[priority]))
    assert request.priority == priority
    assert request_from_json(request.to_json()) == request
    submission = Submission(
        tokens=(1,),
        num_committed=0,
        sampling=Sampling(),
        max_tokens=1,
        grammar=None,
        adapter="",
        time_left_s=1.0,
        kv_root=b"",
        tenant="acme",
        traceparent="",
        priority=request.priority,
    )
    assert to_submit(1, submission).priority == WIRE[priority]


def test_unset_priority_is_standard_and_an_unknown_one_is_refused() -> None:
    assert to_request(router_pb2.GenerateRequest(prompt="hi")).priority == "standard"
    with pytest.raises(InvalidArgument) as refusal:
        to_request(router_pb2.GenerateRequest(prompt="hi", priority=77))
    assert refusal.value.metadata["field"] == "priority"


@pytest.mark.parametrize(
    ("tier", "priority"),
    [(None, "standard"), ("auto", "standard"), ("flex", "batch"), ("priority", "interactive")],
)
def test_service_tier_of_the_openai_edge_is_the_priority(tier: str | None, priority: str) -> None:
    body = {"prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}
    if tier is not None:
        body["service_tier"] = tier
    assert completion_request(body, "").priority == priority
    assert chat_request(body, "").priority == priority


def test_unknown_service_tier_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="service_tier"):
        completion_request({"prompt": "hi", "service_tier": "gold"}, "")


def test_entry_of_an_older_journal_has_standard_priority() -> None:
    text = Request(prompt="hi").to_json().replace(',"priority":"standard"', "")
    assert request_from_json(text).priority == "standard"
