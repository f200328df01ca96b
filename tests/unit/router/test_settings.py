"""Router settings: pools and keys are checked before anything starts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from services.router.settings import RouterSettings
from understudy.serving import SettingsError

POOLS = [
    {"name": "slm", "workers": ["127.0.0.1:1"], "version_dir": "models/slm"},
    {"name": "llm", "workers": "k8s:default/llm:grpc"},
]


def environ(**changes: str) -> dict[str, str]:
    values = {"POOLS": json.dumps(POOLS), "TOKENIZER": "tokenizer.json", **changes}
    return {f"UNDERSTUDY_ROUTER_{name}": value for name, value in values.items()}


def test_pools_come_from_text_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "pools.json").write_text(json.dumps(POOLS))
    for text in (json.dumps(POOLS), f"@{tmp_path / 'pools.json'}"):
        slm, llm = RouterSettings.from_env(environ(POOLS=text)).parsed_pools()
        assert (slm.workers, slm.version_dir) == ("127.0.0.1:1", Path("models/slm"))
        assert (llm.workers, llm.version_dir) == ("k8s:default/llm:grpc", None)


@pytest.mark.parametrize(
    "pools",
    ["{", "[]", "[1]", '[{"name":"slm","workers":["a:1"]}]', '[{"name":"llm","workers":[]}]',
     '[{"name":"llm","workers":5}]', '[{"name":"llm"}]',
     '[{"name":"llm","workers":["a:1"]},{"name":"llm","workers":["a:1"]}]',
     '[{"name":"llm","workers":["a:1"]},{"name":"XXL","workers":["a:1"]}]',
     '[{"name":"llm","workers":["a:1"]},{"name":"auto","workers":["a:1"]}]'],
)  # fmt: skip
def test_bad_pools_are_refused_by_name(pools: str) -> None:
    with pytest.raises(SettingsError, match="UNDERSTUDY_ROUTER_POOLS"):
        RouterSettings.from_env(environ(POOLS=pools))


def test_pools_beside_the_two_have_names_of_their_own() -> None:
    pools = [*POOLS, {"name": "code-2", "workers": ["a:1"]}]
    names = [
        pool.name
        for pool in RouterSettings.from_env(environ(POOLS=json.dumps(pools))).parsed_pools()
    ]
    assert names == ["slm", "llm", "code-2"]


@pytest.mark.parametrize(
    ("changes", "drain_s"),
    [
        ({}, 120),
        ({"REQUEST_TIMEOUT_S": "7"}, 7),
        ({"DRAIN_GRACE_S": "30.5"}, 30.5),
        ({"REQUEST_TIMEOUT_S": "100000"}, 86_400),
    ],
)
def test_a_router_drains_for_its_longest_request_unless_told_otherwise(
    changes: dict[str, str], drain_s: float
) -> None:
    assert RouterSettings.from_env(environ(**changes)).drain_s == drain_s


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONTROLLERS", "controller:9000,nowhere"),
        ("WAKE_PATIENCE_S", "0"),
        ("MAX_REQUESTS", "0"),
        ("REQUEST_TIMEOUT_S", "-1"),
        ("DRAIN_GRACE_S", "-1"),
        ("DRAIN_GRACE_S", "nan"),
        ("DRAIN_GRACE_S", "86401"),
        ("HTTP_LISTEN", "here"),
        ("COLOUR", "red"),
    ],
)
def test_bad_values_are_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError):
        RouterSettings.from_env(environ(**{name: value}))


def test_open_routers_are_kept_to_loopback() -> None:
    settings = RouterSettings.from_env(environ())
    settings.check_open("127.0.0.1:9090", "", "localhost:8080", "[::1]:1")
    with pytest.raises(SettingsError, match=r"0\.0\.0\.0:9090"):
        settings.check_open("0.0.0.0:9090", "127.0.0.1:8080")
    RouterSettings.from_env(environ(ALLOW_OPEN="true")).check_open("0.0.0.0:9090")
    keys = json.dumps([{"tenant": "acme", "sha256": hashlib.sha256(b"k").hexdigest()}])
    RouterSettings.from_env(environ(API_KEYS=keys)).check_open("0.0.0.0:9090")


def test_bad_keys_are_refused_without_their_content() -> None:
    for name in ("API_KEYS", "JOURNAL_KEY"):
        settings = RouterSettings.from_env(environ(**{name: "hunter2!"}))
        with pytest.raises(SettingsError, match=name) as caught:
            settings.parsed_keys()
            settings.parsed_journal_key()
        assert "hunter2" not in str(caught.value)
    assert RouterSettings.from_env(environ()).parsed_journal_key() is None
