"""The built-in Redis servers ask for a password, and their users may do what services do, no more.

The rendered commands, users and URLs start and reach real servers.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

import pytest
from prometheus_client import CollectorRegistry
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError

from services.kvstore.clients import RedisChunks, open_redis
from services.kvstore.metrics import KvStoreMetrics
from services.kvstore.settings import KvStoreSettings
from services.router.journal import PREFIX, Journal, connect
from services.router.requests import Request
from services.router.sealing import Sealer
from tests.chart.manifests import (
    Helm,
    Manifest,
    containers_of,
    named,
    pod_of,
    service_containers,
    workloads,
)
from tests.chart.redis_servers import ROLES, SECRET, Server, data_of, start, wait
from understudy.chunks.naming import chunk_key

CHUNK: Final = chunk_key("default", bytes(32), bytes(32))
OWN_KEYS: Final = {"kv": CHUNK, "control": f"{PREFIX}a"}
READERS: Final = {
    "UNDERSTUDY_KVSTORE_REDIS_URL": "kv-url",
    "UNDERSTUDY_ROUTER_CONTROL_REDIS": "control-url",
}
FORBIDDEN: Final = (
    ("CONFIG", "GET", "*"),
    ("FLUSHALL",),
    ("KEYS", "*"),
    ("ACL", "LIST"),
    ("CLIENT", "LIST"),
    ("SHUTDOWN", "NOSAVE"),
    ("REPLICAOF", "NO", "ONE"),
    ("MODULE", "LIST"),
)


@pytest.fixture(scope="module")
def servers(
    defaults: list[Manifest], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Server]]:
    started = {role: start(defaults, role, tmp_path_factory.mktemp(role)) for role in ROLES}
    try:
        for server in started.values():
            wait(server)
        yield started
    finally:
        for server in started.values():
            server.process.kill()
            server.process.wait()


@pytest.mark.parametrize("role", ROLES)
def test_without_a_password_a_server_answers_pings_and_nothing_else(
    servers: Mapping[str, Server], role: str
) -> None:
    with Redis.from_url(servers[role].open_url) as client:
        assert client.ping()
        for command in (("GET", OWN_KEYS[role]), ("SET", OWN_KEYS[role], "b"), *FORBIDDEN):
            with pytest.raises(NoPermissionError):
                client.execute_command(*command)


@pytest.mark.parametrize("role", ROLES)
def test_a_wrong_password_is_refused(servers: Mapping[str, Server], role: str) -> None:
    url = servers[role].open_url.replace("//", "//understudy:wrong@")
    with Redis.from_url(url) as client, pytest.raises(AuthenticationError):
        client.ping()


@pytest.mark.parametrize("role", ROLES)
def test_a_service_may_neither_administer_its_server_nor_touch_foreign_keys(
    servers: Mapping[str, Server], role: str
) -> None:
    with Redis.from_url(servers[role].url) as client:
        assert client.get(OWN_KEYS[role]) is None
        for command in (("GET", "other"), ("SET", "other", "b"), *FORBIDDEN):
            with pytest.raises(NoPermissionError):
                client.execute_command(*command)


@pytest.fixture
async def chunks(servers: Mapping[str, Server]) -> AsyncIterator[RedisChunks]:
    settings = KvStoreSettings(redis_url=servers["kv"].url, redis_timeout_s=10.0)
    found = open_redis(settings, KvStoreMetrics.on(CollectorRegistry()))
    assert found is not None
    yield found
    await found.aclose()


async def test_the_kvstore_may_do_all_that_it_does(chunks: RedisChunks) -> None:
    assert await chunks.have([CHUNK]) == [False]
    assert await chunks._set(CHUNK, b"bytes")
    assert await chunks.have([CHUNK]) == [True]
    assert await chunks.get(CHUNK) == b"bytes"
    await chunks.discard(CHUNK)
    assert await chunks.get(CHUNK) is None


async def test_the_journal_may_do_all_that_it_does(servers: Mapping[str, Server]) -> None:
    redis = connect(servers["control"].url, timeout_s=10.0)
    assert redis is not None
    async with redis:
        journal = Journal(redis, Sealer(bytes(32)), ttl_s=60)
        entry = await journal.open("t", Request(prompt="Hello?", idempotency_key="k"), "r")
        assert entry is not None, "the journal is away"
        async with entry.kept():
            await entry.append({"kind": "path"})
            await journal.renew(entry._place, entry._owner)
        follower = await journal.find("t", entry.token)
        assert [record["kind"] for record in follower.records] == ["head", "path"]
        await follower.look()


def test_services_get_the_urls_from_the_secret(defaults: list[Manifest]) -> None:
    found = {
        entry["name"]: entry["valueFrom"]["secretKeyRef"]
        for container in service_containers(defaults)
        for entry in container["env"]
        if "secretKeyRef" in entry.get("valueFrom", {})
    }
    assert found == {name: {"name": SECRET, "key": key} for name, key in READERS.items()}


def test_the_urls_lead_to_the_servers(defaults: list[Manifest]) -> None:
    secret = data_of(defaults)
    for role in ROLES:
        url = urlsplit(secret[f"{role}-url"])
        service = named(defaults, "Service", str(url.hostname))
        assert url.port in [port["port"] for port in service["spec"]["ports"]]
        assert url.password == secret[f"{role}-password"]
        assert service["metadata"]["name"].endswith(f"redis-{role}")
    assert secret["kv-password"] != secret["control-password"]


def test_a_server_sees_its_users_and_no_password(defaults: list[Manifest]) -> None:
    for role in ROLES:
        pod = pod_of(named(defaults, "StatefulSet", f"demo-understudy-redis-{role}"))
        [volume] = [one["secret"] for one in pod["volumes"] if "secret" in one]
        assert [item["key"] for item in volume["items"]] == [f"{role}-users.acl"]
        assert data_of(defaults)[f"{role}-password"] not in data_of(defaults)[f"{role}-users.acl"]


def test_with_users_of_your_own_no_password_is_made(helm: Helm) -> None:
    manifests = helm.render(values={"redis.usersSecret": "mine"})
    assert not [one for one in manifests if one["metadata"]["name"] == SECRET]
    names = {
        source["name"]
        for workload in workloads(manifests)
        for container in containers_of(pod_of(workload))
        for entry in container.get("env", [])
        if (source := entry.get("valueFrom", {}).get("secretKeyRef"))
    }
    volumes = {
        volume["secret"]["secretName"]
        for workload in workloads(manifests)
        for volume in pod_of(workload).get("volumes", [])
        if "secret" in volume
    }
    assert names == {"mine"}
    assert volumes == {"mine", "demo-understudy-keys"}


def test_one_server_of_your_own_leaves_the_other_its_password(helm: Helm) -> None:
    manifests = helm.render(values={"redis.kv.externalUrl": "redis://cache"})
    assert {key.partition("-")[0] for key in data_of(manifests)} == {"control"}
