"""Keys and authorities are files that operators replace while the router serves."""

from __future__ import annotations

import hashlib
import json
import logging
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.certificates import Authority, Validity, publish
from services.router.clients import openai
from tests.contract.router.external import external, start
from tests.contract.router.parts import TIMEOUT_S, answer, chat, events
from understudy.errors import Unauthenticated
from understudy.rpc import from_rpc_error
from understudy.testing.fake_engine import EngineReply, FakeEngine, spoken, text_chunk

VALID = Validity.of(1, datetime.now(UTC))


def replace(file: Path, content: bytes) -> None:
    fresh = file.with_name(f"{file.name}.new")
    fresh.write_bytes(content)
    fresh.replace(file)


def keys(*names: str) -> bytes:
    entries = [{"tenant": n, "sha256": hashlib.sha256(n.encode()).hexdigest()} for n in names]
    return json.dumps(entries).encode()


async def ask(house: Any, key: str) -> None:
    metadata = (("authorization", f"Bearer {key}"),)
    try:
        await events(house.stub.Generate(chat(), metadata=metadata, timeout=TIMEOUT_S))
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None


async def test_new_keys_of_callers_count_at_once_and_broken_ones_leave_those_in_use(
    town: Any, caplog: pytest.LogCaptureFixture
) -> None:
    file = town.directory / "keys.json"
    replace(file, keys("acme"))
    house = await town.open(api_keys=f"@{file}")
    await ask(house, "acme")
    assert house.metric("refused_files", file="api_keys") == 0

    replace(file, keys("umbrella"))
    await ask(house, "umbrella")
    with pytest.raises(Unauthenticated):
        await ask(house, "acme")

    with caplog.at_level(logging.ERROR):
        for broken in (b"[{", b"", b"[]"):
            replace(file, broken)
            assert house.metric("refused_files", file="api_keys") == 1
            await ask(house, "umbrella")
            with pytest.raises(Unauthenticated):
                await ask(house, "")
    assert len(caplog.records) == 3
    assert {record.message.split(".")[0] for record in caplog.records} == {
        "The new API keys cannot be used; those in use stay"
    }

    replace(file, keys("acme"))
    await ask(house, "acme")
    assert house.metric("refused_files", file="api_keys") == 0


@pytest.fixture
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "LOOK_INTERVAL_S", 0.01)
    monkeypatch.setattr(openai, "AWAY_INTERVAL_S", 0.01)


@pytest.mark.usefixtures("_looks_often")
async def test_a_new_key_for_engines_is_shown_and_a_broken_one_is_not(town: Any) -> None:
    file = town.directory / "key"
    replace(file, b"first")
    engine = FakeEngine(lambda _: spoken("Hello."), key="first")
    pool = external("llm", await start(town, engine), key_file=str(file))
    house = await town.open(pools=json.dumps([pool]))
    await answer(house, chat())

    replace(file, b"not a key")
    assert house.metric("refused_files", file="engine_key") == 1
    num_looks = engine.num_looks
    await engine.wait_until(lambda: engine.num_looks >= num_looks + 3)
    await answer(house, chat())

    replace(file, b"second")
    engine.key = "second"
    num_looks = engine.num_looks
    await engine.wait_until(lambda: engine.num_looks > num_looks)
    await answer(house, chat())
    assert house.metric("refused_files", file="engine_key") == 0
    assert engine.asked[-1].headers["authorization"] == "Bearer second"


def serving(folder: Path, authority: Authority) -> ssl.SSLContext:
    chain, key = authority.issue("localhost", VALID)
    publish(folder, {"tls.crt": chain, "tls.key": key})
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return context


@pytest.mark.usefixtures("_looks_often")
async def test_a_new_authority_of_engines_is_trusted_without_breaking_an_answer(town: Any) -> None:
    former, new = (Authority.make(name, VALID) for name in ("former", "new"))
    file = town.directory / "ca.crt"
    replace(file, former.pem)
    old = FakeEngine(
        lambda _: EngineReply([text_chunk("Hel")], holds=True),
        trust=serving(town.directory / "old", former),
    )
    fresh = FakeEngine(lambda _: spoken("Hello."), trust=serving(town.directory / "fresh", new))
    urls = [(await start(town, e)).replace("127.0.0.1", "localhost") for e in (old, fresh)]
    house = await town.open(pools=json.dumps([external("llm", *urls, ca_file=str(file))]))
    running = house.stub.Generate(chat(), timeout=TIMEOUT_S)
    await running.read()
    assert (await running.read()).delta.text == "Hel"

    replace(file, b"no certificate")
    assert house.metric("refused_files", file="engine_ca") == 1
    replace(file, new.pem)
    await fresh.wait_until(lambda: fresh.num_looks > 0)
    await answer(house, chat())

    assert (len(old.asked), old.num_left, len(fresh.asked)) == (1, 0, 1)
    running.cancel()
    await old.wait_until(lambda: old.num_left == 1)
