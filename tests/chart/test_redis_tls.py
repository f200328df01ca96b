"""A Redis of one's own behind TLS: what is mounted and told, and that clients trust it alone.

The Valkey of the tests is built without TLS, so TLS ends in front of a real one.
"""

import asyncio
import re
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest
from prometheus_client import CollectorRegistry

from deploy.certificates import Authority, Validity
from services.kvstore.clients import open_redis
from services.kvstore.metrics import KvStoreMetrics
from services.kvstore.settings import KvStoreSettings
from services.router.journal import Journal, connect
from services.router.requests import Request
from services.router.sealing import Sealer
from services.router.settings import RouterSettings
from tests.chart.manifests import (
    CHART,
    Helm,
    Manifest,
    RenderError,
    environment_of,
    named,
    pod_of,
    service_containers,
)
from tests.chart.redis_servers import ROLES, Server, data_of, wait
from understudy.chunks.naming import chunk_key
from understudy.local.ports import free_port
from understudy.local.services import valkey_binary
from understudy.serving import SettingsError

PASSWORD: Final = "of-the-test"
FILE: Final = "/etc/understudy/redis-ca/ca.crt"
VALUES: Final[Mapping[str, object]] = {
    "redis.kv.externalUrl": "rediss://cache.example.com:6380/1",
    "redis.kv.caConfigMap.name": "redis-authority",
    "redis.control.externalSecret": "control-redis",
    "redis.control.caConfigMap": {"name": "other-authority", "key": "bundle.pem"},
}


def _rights() -> dict[str, str]:
    """The users that the chart's README prints, in the order of the servers."""
    lines = re.findall(
        r"^user understudy on >PASSWORD .*$", (CHART / "README.md").read_text(), re.M
    )
    return dict(zip(ROLES, lines, strict=True))


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make("ours", Validity.of(1, datetime.now(UTC)))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Server]]:
    """Servers whose users have the printed rights and no more."""
    started = {}
    try:
        for role, user in _rights().items():
            folder, port = tmp_path_factory.mktemp(role), free_port()
            users = folder / "users.acl"
            users.write_text(f"user default off\n{user.replace('PASSWORD', PASSWORD)}\n")
            place = ["--dir", str(folder), "--port", str(port), "--bind", "127.0.0.1"]
            command = [valkey_binary(), *place, "--save", "", "--aclfile", str(users)]
            url = f"redis://understudy:{PASSWORD}@127.0.0.1:{port}/0"
            started[role] = Server(url, url, subprocess.Popen(command, stdout=subprocess.DEVNULL))
        for server in started.values():
            wait(server)
        yield started
    finally:
        for server in started.values():
            server.process.kill()
            server.process.wait()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError, ssl.SSLError):
        while part := await reader.read(65536):
            writer.write(part)
            await writer.drain()
    writer.close()


async def _secured(
    server: Server, authority: Authority, folder: Path, stack: AsyncExitStack
) -> str:
    """End TLS in front of a server; return the URL for callers."""
    chain, key = authority.issue("localhost", Validity.of(1, datetime.now(UTC)))
    (folder / "tls.crt").write_bytes(chain)
    (folder / "tls.key").write_bytes(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", urlsplit(server.url).port)
        async with asyncio.TaskGroup() as group:
            group.create_task(_copy(reader, there[1]))
            group.create_task(_copy(there[0], writer))

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    stack.callback(listener.close)
    port = listener.sockets[0].getsockname()[1]
    return f"rediss://understudy:{PASSWORD}@localhost:{port}/0"


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def test_a_private_authority_is_trusted_and_the_printed_rights_are_enough(
    servers: Mapping[str, Server], authority: Authority, tmp_path: Path, stack: AsyncExitStack
) -> None:
    urls = {
        role: await _secured(server, authority, tmp_path, stack) for role, server in servers.items()
    }
    trusted = tmp_path / "ca.crt"
    trusted.write_bytes(authority.pem)

    settings = KvStoreSettings(redis_url=urls["kv"], redis_ca=trusted, redis_timeout_s=10.0)
    chunks = open_redis(settings, KvStoreMetrics.on(CollectorRegistry()))
    assert chunks is not None
    stack.push_async_callback(chunks.aclose)
    key = chunk_key("default", bytes(32), bytes(32))
    assert await chunks._set(key, b"bytes")
    assert await chunks.have([key]) == [True]
    assert await chunks.get(key) == b"bytes"
    await chunks.discard(key)

    redis = connect(urls["control"], timeout_s=10.0, authority=trusted)
    assert redis is not None
    async with redis:
        journal = Journal(redis, Sealer(bytes(32)), ttl_s=60)
        entry = await journal.open("t", Request(prompt="Hello?", idempotency_key="k"), "r")
        assert entry is not None, "the journal is away"
        async with entry.kept():
            await entry.append({"kind": "path"})
        follower = await journal.find("t", entry.token)
        assert [record["kind"] for record in follower.records] == ["head", "path"]


async def test_a_server_that_nobody_vouches_for_is_not_talked_to(
    servers: Mapping[str, Server], authority: Authority, tmp_path: Path, stack: AsyncExitStack
) -> None:
    url = await _secured(servers["control"], authority, tmp_path, stack)
    stranger = tmp_path / "stranger.crt"
    stranger.write_bytes(Authority.make("another", Validity.of(1, datetime.now(UTC))).pem)
    for trusted in (stranger, None):
        redis = connect(url, timeout_s=10.0, authority=trusted)
        assert redis is not None
        async with redis:
            journal = Journal(redis, Sealer(bytes(32)), ttl_s=60)
            assert await journal.open("t", Request(prompt="Hello?"), "r") is None


def test_the_printed_rights_are_those_of_the_built_in_servers(defaults: list[Manifest]) -> None:
    secret = data_of(defaults)
    for role, user in _rights().items():
        [line] = re.findall(r"^user understudy .*$", secret[f"{role}-users.acl"], re.M)
        assert re.sub(r"#\w+", ">PASSWORD", line) == user


def test_the_authority_is_mounted_where_its_reader_looks(helm: Helm) -> None:
    manifests = helm.render(values=VALUES)
    found = {
        (container["name"], environment_of(container).get(variable))
        for container in service_containers(manifests)
        for variable in ("UNDERSTUDY_KVSTORE_REDIS_CA", "UNDERSTUDY_ROUTER_CONTROL_REDIS_CA")
        if variable in environment_of(container)
    }
    assert found == {("kvstore", FILE), ("router", FILE)}
    for kind, name, service, bundle, key in (
        ("StatefulSet", "llm-attention", "kvstore", "redis-authority", "ca.crt"),
        ("Deployment", "router", "router", "other-authority", "bundle.pem"),
    ):
        pod = pod_of(named(manifests, kind, f"demo-understudy-{name}"))
        [volume] = [one for one in pod["volumes"] if one["name"] == "redis-ca"]
        assert volume["configMap"]["name"] == bundle
        assert volume["configMap"]["items"] == [{"key": key, "path": "ca.crt"}]
        containers = {
            one["name"]: one for one in (*pod["containers"], *pod.get("initContainers", []))
        }
        holders = {
            name
            for name, one in containers.items()
            if {"name": "redis-ca", "mountPath": str(Path(FILE).parent), "readOnly": True}
            in one["volumeMounts"]
        }
        assert holders == {service}


def test_without_an_authority_nothing_is_mounted(defaults: list[Manifest]) -> None:
    for container in service_containers(defaults):
        assert not [one for one in container["volumeMounts"] if one["name"] == "redis-ca"]
        environment = environment_of(container)
        for variable in ("UNDERSTUDY_KVSTORE_REDIS_CA", "UNDERSTUDY_ROUTER_CONTROL_REDIS_CA"):
            assert environment.get(variable, "") == ""


@pytest.mark.parametrize("url", ["", "redis://cache.example.com"])
def test_an_authority_without_tls_is_refused_when_rendered(helm: Helm, url: str) -> None:
    values = {"redis.control.caConfigMap.name": "mine", "redis.control.externalUrl": url}
    with pytest.raises(RenderError, match="nothing there speaks TLS"):
        helm.render(values=values)


def test_an_authority_without_tls_stops_a_service_with_a_sentence(
    defaults: list[Manifest],
) -> None:
    with pytest.raises(
        SettingsError, match=r"REDIS_CA is set and .* does not begin with rediss://"
    ):
        KvStoreSettings(redis_url="redis://cache", redis_ca=Path(FILE))
    [environment] = {
        container["name"]: environment_of(container)
        for container in service_containers(defaults)
        if container["name"] == "router"
    }.values()
    told = {**environment, "UNDERSTUDY_ROUTER_CONTROL_REDIS_CA": FILE}
    with pytest.raises(SettingsError, match="CONTROL_REDIS_CA is set and"):
        RouterSettings.from_env(told)
