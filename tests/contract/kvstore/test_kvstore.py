"""The kvstore over gRPC on a real Valkey: hits, misses, and nothing else."""

import grpc
import pytest

from tests.contract.kvstore.conftest import Running, Start
from tests.contract.kvstore.parts import DIGEST, TENANT, Valkey, chain_of, encoded, to_proto
from understudy.api.kvstore.v1 import kvstore_pb2
from understudy.chunks import chunk_key, config_digest
from understudy.errors import InvalidArgument
from understudy.rpc import from_rpc_error

HASHES = chain_of(range(40))


async def test_without_redis_chunks_live_in_host_memory(start: Start):
    kvstore = await start()
    response = await kvstore.put(HASHES)
    assert (response.num_stored, response.num_refused) == (10, 0)
    assert await kvstore.lookup(HASHES) == (10, 10)
    assert await kvstore.get(HASHES) == encoded(HASHES)


async def test_a_restarted_kvstore_finds_everything_in_redis(start: Start, valkey: Valkey):
    first = await start(redis_url=valkey.url)
    await first.put(list(reversed(HASHES)), list(reversed(encoded(HASHES))))
    second = await start(redis_url=valkey.url)
    assert await second.lookup(HASHES) == (10, 0)
    assert await second.get(HASHES) == encoded(HASHES)
    assert await second.lookup(HASHES) == (10, 10)
    assert second.count("chunks_total", outcome="redis") == 10


async def test_the_key_in_redis_is_the_documented_one(start: Start, valkey: Valkey):
    kvstore = await start(redis_url=valkey.url)
    await kvstore.put(HASHES[:1])
    key = f"kv1:{TENANT}:{DIGEST.hex()[:24]}:{HASHES[0].hex()}"
    assert valkey.client.keys() == [key.encode()]
    assert valkey.client.get(key) == encoded(HASHES)[0]


async def test_a_gap_ends_the_run_in_both_tiers(start: Start, valkey: Valkey):
    writer = await start(redis_url=valkey.url)
    await writer.put(HASHES)
    valkey.client.delete(chunk_key(TENANT, DIGEST, HASHES[6]))
    reader = await start(redis_url=valkey.url)
    await reader.get(HASHES[:2])
    assert await reader.lookup(HASHES) == (6, 2)
    assert len(await reader.get(HASHES)) == 6


async def test_two_adapters_share_no_chunk_of_the_same_prompt(start: Start, valkey: Valkey):
    kvstore = await start(redis_url=valkey.url)
    await kvstore.put(HASHES)
    other = config_digest("model", "adapter", "float32", 4, "exact")
    hashes = chain_of(range(40), other)
    assert not set(hashes) & set(HASHES)
    assert await kvstore.lookup(hashes, digest=other) == (0, 0)
    assert await kvstore.get(hashes, digest=other) == []


async def test_two_tenants_share_no_chunk(start: Start, valkey: Valkey):
    kvstore = await start(redis_url=valkey.url)
    await kvstore.put(HASHES)
    assert await kvstore.lookup(HASHES, tenant="other") == (0, 0)
    assert await kvstore.get(HASHES, tenant="other") == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "foreign", "other chunk", "empty"])
async def test_damaged_and_foreign_bytes_are_a_miss_and_leave_redis(
    start: Start, valkey: Valkey, damage: str
):
    good, key = encoded(HASHES)[0], chunk_key(TENANT, DIGEST, HASHES[0])
    bad = {
        "flip": good[:500] + bytes([good[500] ^ 1]) + good[501:],
        "truncate": good[:-1],
        "foreign": b"somebody else's value",
        "other chunk": encoded(HASHES)[1],
        "empty": b"",
    }[damage]
    valkey.client.set(key, bad)
    kvstore = await start(redis_url=valkey.url)
    assert await kvstore.get(HASHES[:1]) == []
    assert valkey.client.get(key) is None
    await kvstore.put(HASHES[:1])
    assert valkey.client.get(key) == good


async def test_a_value_of_another_type_is_a_miss(start: Start, valkey: Valkey):
    valkey.client.lpush(chunk_key(TENANT, DIGEST, HASHES[0]), "list")
    kvstore = await start(redis_url=valkey.url)
    assert await kvstore.get(HASHES[:1]) == []


async def test_a_put_that_is_not_its_chain_is_refused_and_counted(start: Start, valkey: Valkey):
    kvstore = await start(redis_url=valkey.url)
    response = await kvstore.put(HASHES[:2], [encoded(HASHES)[1], b"junk"])
    assert (response.num_stored, response.num_refused) == (0, 2)
    assert await kvstore.lookup(HASHES) == (0, 0)
    assert kvstore.count("refused_chunks_total", source="put", mismatch="hash") == 1
    assert valkey.client.dbsize() == 0


async def test_redis_killed_mid_run_costs_hits_only(start: Start, valkey: Valkey):
    kvstore = await start(
        redis_url=valkey.url, breaker_failures=2, breaker_rest_s=0.01, redis_timeout_s=2.0
    )
    await kvstore.put(HASHES[:5])
    valkey.kill()
    assert await kvstore.lookup(HASHES) == (5, 5)
    assert len(await kvstore.get(HASHES)) == 5
    response = await kvstore.put(HASHES[5:])
    assert response.num_stored == 5
    assert await kvstore.lookup(HASHES) == (10, 10)
    fresh = await start(redis_url=valkey.url, redis_timeout_s=2.0)
    assert await fresh.lookup(HASHES) == (0, 0)
    assert await fresh.get(HASHES) == []


async def test_redis_that_comes_back_is_used_again(start: Start, valkey: Valkey):
    kvstore = await start(
        redis_url=valkey.url, breaker_failures=1, breaker_rest_s=0.01, redis_timeout_s=5.0
    )
    valkey.kill()
    assert await kvstore.lookup(HASHES[:1]) == (0, 0)
    valkey.restart()
    valkey.client.set(chunk_key(TENANT, DIGEST, HASHES[0]), encoded(HASHES)[0])
    attempts = [await _found(kvstore) for _ in range(200)]
    assert any(attempts)


async def _found(kvstore: Running) -> bool:
    return await kvstore.lookup(HASHES[:1]) == (1, 0)


async def test_a_stored_chunk_is_not_written_again(start: Start, valkey: Valkey):
    kvstore = await start(redis_url=valkey.url)
    await kvstore.put(HASHES[:1])
    key = chunk_key(TENANT, DIGEST, HASHES[0])
    valkey.client.set(key, b"kept")
    await kvstore.put(HASHES[:1])
    assert valkey.client.get(key) == b"kept"


async def test_a_chunk_is_written_at_its_second_touch_when_so_set(start: Start, valkey: Valkey):
    kvstore = await start(redis_url=valkey.url, redis_write_touches=2)
    await kvstore.put(HASHES[:1])
    assert valkey.client.dbsize() == 0
    await kvstore.put(HASHES[:1])
    assert valkey.client.dbsize() == 1


async def test_writes_beyond_the_cap_are_dropped_and_counted(start: Start, valkey: Valkey):
    kvstore = await start(redis_url=valkey.url, redis_inflight_mib=1)
    hashes = chain_of(range(16))
    big = encoded(hashes, size=700_000)
    response = await kvstore.put(hashes, big)
    assert response.num_stored == 4
    assert 1 <= valkey.client.dbsize() <= 4
    assert valkey.client.dbsize() + kvstore.count("dropped_writes_total") == 4


async def test_host_memory_is_capped(start: Start):
    kvstore = await start(memory_mib=1)
    hashes = chain_of(range(16))
    await kvstore.put(hashes, encoded(hashes, size=400_000))
    assert await kvstore.lookup(hashes) == (0, 0)
    assert len(await kvstore.get(hashes[2:])) == 2
    assert kvstore.count("memory_bytes") <= 1 << 20


@pytest.mark.parametrize(
    "chain",
    [
        to_proto(HASHES, tenant="a:b"),
        to_proto(HASHES, digest=b"short"),
        to_proto([b"short"]),
        to_proto([b"h" * 32] * 4097),
    ],
)
async def test_a_malformed_chain_is_refused_by_name(start: Start, chain: kvstore_pb2.Chain):
    kvstore = await start()
    with pytest.raises(grpc.RpcError) as caught:
        await kvstore.stub.Lookup(kvstore_pb2.LookupRequest(chain=chain), timeout=20)
    assert isinstance(from_rpc_error(caught.value), InvalidArgument)


async def test_a_put_names_exactly_one_hash(start: Start):
    kvstore = await start()
    request = kvstore_pb2.PutRequest(chain=to_proto(HASHES), data=b"")
    with pytest.raises(grpc.RpcError) as caught:
        await kvstore.stub.Put(iter([request]), timeout=20)
    assert "exactly one hash" in from_rpc_error(caught.value).message


async def test_an_empty_chain_is_a_run_of_nothing(start: Start, valkey: Valkey):
    kvstore = await start(redis_url=valkey.url)
    assert await kvstore.lookup([]) == (0, 0)
    assert await kvstore.get([]) == []


async def test_a_drain_writes_what_waits(start: Start, valkey: Valkey):
    kvstore = await start(redis_url=valkey.url)
    for hash_, data in zip(HASHES, encoded(HASHES), strict=True):
        request = kvstore_pb2.PutRequest(chain=to_proto([hash_]), data=data)
        await kvstore.stub.Put(iter([request]), timeout=20)
    await kvstore.opened.drain(20.0)
    assert valkey.client.dbsize() == 10
