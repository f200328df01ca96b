"""The `openai` client against the HTTP edge of the running platform."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import openai
import pytest
from openai import OpenAI
from tokenizers import Tokenizer

from tests.integration.live_platform import CALL_TIMEOUT_S, Cast, LivePlatform
from tests.integration.processes import LOOPBACK, Processes
from understudy import Client, Unauthenticated
from understudy.local.models import find_checkout, find_models
from understudy.local.ports import free_port
from understudy.local.settings import LocalSettings
from understudy.workloads import find_workload

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SKY: list[Any] = [{"role": "user", "content": "Why is the sky blue?"}]
SKY_PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"
)
NUM_TOKENS = 10
SCHEMA = {
    "type": "object",
    "properties": {"is_planet": {"type": "boolean"}, "kind": {"enum": ["rock", "gas"]}},
    "required": ["is_planet", "kind"],
    "additionalProperties": False,
}
KEY = "the key of acme"


@pytest.fixture
def client(live: LivePlatform) -> Iterator[OpenAI]:
    with open_client(live.openai_url) as made:
        yield made


def open_client(url: str, api_key: str = "none") -> OpenAI:
    return OpenAI(base_url=url, api_key=api_key, max_retries=0, timeout=CALL_TIMEOUT_S)


def num_prompt_tokens(prompt: str) -> int:
    path = find_models(LocalSettings(), find_checkout()).tokenizer
    return len(Tokenizer.from_file(str(path)).encode(prompt, add_special_tokens=False).ids)


def ask(cast: Cast, **changes: Any) -> dict[str, Any]:
    """An utterance that the SLM answers, with the workload's tools."""
    messages = [{"role": "user", "content": cast.accepted.row.text}]
    tools = find_workload("snips").tools
    return {"model": "auto", "messages": messages, "tools": tools, **changes}


def test_a_chat_is_answered_with_exact_usage_and_says_who_answered(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=SKY, max_tokens=NUM_TOKENS
    )
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == num_prompt_tokens(SKY_PROMPT)
    assert answer.usage.completion_tokens == NUM_TOKENS
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + NUM_TOKENS
    assert raw.headers["x-understudy-pool"] == "llm"
    assert raw.headers["x-understudy-reason"] == "no_calibrator"
    assert float(raw.headers["x-understudy-cost"]) == answer.usage.total_tokens


def test_a_streamed_chat_has_the_text_and_usage_of_the_whole_one(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="llm", messages=SKY, max_tokens=NUM_TOKENS)
    stream = client.chat.completions.create(
        model="llm",
        messages=SKY,
        max_tokens=NUM_TOKENS,
        stream=True,
        stream_options={"include_usage": True},
    )
    with stream:
        *pieces, last = list(stream)
    texts = [piece.choices[0].delta.content or "" for piece in pieces]
    assert "".join(texts) == whole.choices[0].message.content
    assert len([text for text in texts if text]) > 1
    assert [p.choices[0].finish_reason for p in pieces if p.choices[0].finish_reason] == ["length"]
    assert whole.usage is not None and last.usage is not None
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    assert last.usage.completion_tokens == NUM_TOKENS
    assert last.model_extra is not None
    assert last.model_extra["understudy"]["reason"] == "requested"


def test_a_completion_continues_raw_text(client: OpenAI) -> None:
    prompt = "The capital of France is"
    answer = client.completions.create(model="llm", prompt=prompt, max_tokens=3)
    assert answer.choices[0].text.strip().startswith("Paris")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == num_prompt_tokens(prompt)


def test_tools_are_called_by_the_slm_where_it_is_sure(client: OpenAI, cast: Cast) -> None:
    raw = client.chat.completions.with_raw_response.create(**ask(cast))
    choice = raw.parse().choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    parsed = find_workload("snips").parse(
        json.dumps({"name": call.function.name, "arguments": json.loads(call.function.arguments)})
    )
    (expected,) = cast.accepted.answer.tool_calls
    assert (parsed.name, dict(parsed.arguments)) == (expected.name, expected.arguments)
    assert raw.headers["x-understudy-pool"] == "slm"
    assert raw.headers["x-understudy-reason"] == "slm_accepted"
    confidence = float(raw.headers["x-understudy-confidence"])
    assert confidence == pytest.approx(cast.accepted.answer.decision.confidence, rel=1e-5)


def test_streamed_tools_carry_the_decision_in_the_last_chunk(client: OpenAI, cast: Cast) -> None:
    options = {"include_usage": True}
    with client.chat.completions.create(**ask(cast, stream=True, stream_options=options)) as stream:
        *pieces, last = list(stream)
    calls = [call for piece in pieces for call in piece.choices[0].delta.tool_calls or ()]
    (expected,) = cast.accepted.answer.tool_calls
    assert [call.function.name for call in calls if call.function.name] == [expected.name]
    arguments = "".join(call.function.arguments or "" for call in calls)
    assert json.loads(arguments) == expected.arguments
    assert last.model_extra["understudy"]["pool"] == "slm"
    assert last.usage.completion_tokens == cast.accepted.answer.usage.completion_tokens


def test_a_json_schema_is_obeyed(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="auto",
        messages=[{"role": "user", "content": "Is Mars a planet, and of what kind?"}],
        response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA}},
        max_tokens=40,
    )
    assert answer.choices[0].finish_reason == "stop"
    text = answer.choices[0].message.content
    assert text is not None
    jsonschema_rs.validate(SCHEMA, json.loads(text))


def test_the_models_are_listed(client: OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert list(listed) == ["auto", "slm", "llm"]
    assert client.models.retrieve("slm") == listed["slm"]
    with pytest.raises(openai.NotFoundError, match="known are: auto, slm, llm"):
        client.chat.completions.create(model="gpt-4", messages=SKY)


def test_where_keys_are_set_a_wrong_key_is_refused_and_a_right_one_is_served(
    live: LivePlatform, cast: Cast, processes: Processes
) -> None:
    edge = f"{LOOPBACK}:{free_port()}"
    keys = [{"tenant": "acme", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}]
    router = processes.start(
        "router",
        pools=json.dumps(pools_of(live)),
        tokenizer=str(find_models(LocalSettings(), find_checkout()).tokenizer),
        http_listen=edge,
        api_keys=json.dumps(keys),
    )
    for wrong in ("none", KEY.upper()):
        with open_client(f"http://{edge}/v1", wrong) as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                client.chat.completions.create(model="auto", messages=SKY)
            assert caught.value.code == Unauthenticated.reason.lower()
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
    with Client(router.address, api_key="wrong") as sdk, pytest.raises(Unauthenticated):
        sdk.complete(messages=SKY)
    with open_client(f"http://{edge}/v1", KEY) as client:
        answer = client.chat.completions.create(**ask(cast))
        assert answer.choices[0].finish_reason == "tool_calls"


def pools_of(live: LivePlatform) -> list[dict[str, object]]:
    slm, llm = (f"{LOOPBACK}:{live.service(f'attention-{pool}').port}" for pool in ("slm", "llm"))
    version_dir = str(Path(find_models(LocalSettings(), find_checkout()).slm))
    return [
        {"name": "slm", "workers": [slm], "version_dir": version_dir},
        {"name": "llm", "workers": [llm]},
    ]
