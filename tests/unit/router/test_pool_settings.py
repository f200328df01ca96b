"""Settings of external pools: checked before anything starts, refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.router.settings import RouterSettings
from understudy.serving import SettingsError

ENGINE: dict[str, Any] = {
    "name": "llm",
    "kind": "openai",
    "urls": ["https://engine:8000/v1/", "http://other/v1"],
    "model": "org/model",
    "position_parameters": 7_000_000_000,
}


def settings(*pools: dict[str, Any], tokenizer: str = "") -> RouterSettings:
    environ = {"UNDERSTUDY_ROUTER_POOLS": json.dumps(pools)}
    if tokenizer:
        environ["UNDERSTUDY_ROUTER_TOKENIZER"] = tokenizer
    return RouterSettings.from_env(environ)


def test_an_external_pool_needs_little_and_no_tokenizer() -> None:
    (pool,) = settings(ENGINE).parsed_pools()
    assert pool.external is not None
    assert pool.external.urls == ("https://engine:8000/v1", "http://other/v1")
    assert (pool.external.key_file, pool.external.logprobs) == (None, False)
    assert pool.external.idle_timeout_s == 60.0
    (pool,) = settings({**ENGINE, "key_file": "/keys/llm", "idle_timeout_s": 5}).parsed_pools()
    assert pool.external is not None
    assert (pool.external.key_file, pool.external.idle_timeout_s) == (Path("/keys/llm"), 5.0)


def test_a_native_pool_beside_it_needs_the_tokenizer() -> None:
    slm = {"name": "slm", "workers": "a:1"}
    with pytest.raises(SettingsError, match="TOKENIZER"):
        settings(ENGINE, slm)
    assert len(settings(ENGINE, slm, tokenizer="tokenizer.json").parsed_pools()) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "azure"}, "azure"),
        ({"urls": []}, "urls"),
        ({"urls": "https://engine/v1"}, "urls"),
        ({"urls": ["engine:8000"]}, "http://"),
        ({"urls": ["https://user:secret@engine/v1"]}, "key_file"),
        ({"urls": ["https://engine/v1?key=x"]}, "key_file"),
        ({"urls": ["https://engine:99999/v1"]}, "POOLS"),
        ({"urls": ["http://a/v1", "http://a/v1/"]}, "once"),
        ({"model": ""}, "model"),
        ({"position_parameters": 0}, "position_parameters"),
        ({"position_parameters": True}, "position_parameters"),
        ({"position_parameters": 1e9}, "position_parameters"),
        ({"max_context_tokens": -1}, "max_context_tokens"),
        ({"logprobs": "yes"}, "logprobs"),
        ({"idle_timeout_s": 0}, "idle_timeout_s"),
        ({"idle_timeout_s": "5"}, "idle_timeout_s"),
        ({"connect_timeout_s": float("inf")}, "connect_timeout_s"),
        ({"colour": "red"}, "colour"),
        ({"workers": "a:1"}, "workers"),
    ],
)
def test_a_bad_entry_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        settings({**ENGINE, **change})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["urls", "model", "position_parameters"])
def test_what_nobody_else_knows_must_be_given(name: str) -> None:
    entry = {key: value for key, value in ENGINE.items() if key != name}
    with pytest.raises(SettingsError, match=name):
        settings(entry)
