"""API keys are known by hash; KV roots separate tenants and models."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from services.router.tenants import Tenants, follow_keys, parse_keys
from understudy.errors import InvalidArgument, Unauthenticated

KEYS = {hashlib.sha256(b"alpha").digest(): "acme", hashlib.sha256(b"beta").digest(): "umbrella"}


def test_keys_name_their_tenant() -> None:
    tenants = Tenants(lambda: KEYS, b"secret")
    assert tenants.authenticate("Bearer alpha") == "acme"
    assert tenants.authenticate("bearer  beta ") == "umbrella"


@pytest.mark.parametrize("value", [None, "", "alpha", "Basic alpha", "Bearer ", "Bearer gamma"])
def test_no_or_wrong_keys_are_refused_without_an_echo(value: str | None) -> None:
    with pytest.raises(Unauthenticated) as caught:
        Tenants(lambda: KEYS, b"secret").authenticate(value)
    assert "gamma" not in str(caught.value)


def test_without_keys_everybody_is_the_default_tenant() -> None:
    assert Tenants(dict, b"").authenticate(None) == "default"


def test_roots_differ_by_secret_tenant_and_model() -> None:
    roots = {
        Tenants(lambda: KEYS, secret).kv_root(tenant, digest)
        for secret in (b"1", b"2")
        for tenant in ("acme", "umbrella")
        for digest in (b"m", b"n")
    }
    assert len(roots) == 8
    assert {len(root) for root in roots} == {32}


def test_key_files_are_parsed_and_bad_entries_refused() -> None:
    digest = hashlib.sha256(b"alpha").hexdigest()
    text = json.dumps([{"tenant": "acme", "sha256": digest}])
    assert parse_keys(text) == {hashlib.sha256(b"alpha").digest(): "acme"}
    assert parse_keys(" ") == {}
    for bad in ("{", "[1]", '[{"tenant":"acme"}]', '[{"tenant":"A","sha256":"00"}]',
                json.dumps([{"tenant": "a b", "sha256": digest}]), "[" * 100_000):  # fmt: skip
        with pytest.raises(InvalidArgument):
            parse_keys(bad)


def test_keys_of_a_file_follow_it_and_an_emptied_file_opens_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"

    def write(*names: str) -> None:
        entries = [{"tenant": n, "sha256": hashlib.sha256(n.encode()).hexdigest()} for n in names]
        fresh = tmp_path / "fresh"
        fresh.write_text(json.dumps(entries), encoding="ascii")
        fresh.replace(file)

    write()
    followed = follow_keys(file, lambda: parse_keys(file.read_text(encoding="ascii")))
    tenants = Tenants(followed.current, b"")
    assert tenants.authenticate(None) == "default"
    write("acme")
    assert tenants.authenticate("Bearer acme") == "acme"
    write("umbrella")
    assert tenants.authenticate("Bearer umbrella") == "umbrella"
    with pytest.raises(Unauthenticated):
        tenants.authenticate("Bearer acme")
    write()
    assert followed.is_refused()
    assert tenants.authenticate("Bearer umbrella") == "umbrella"
    with pytest.raises(Unauthenticated):
        tenants.authenticate(None)
