"""Names and bytes of KV chunks."""

import hashlib
import hmac

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.chunks import (
    HEADER_BYTES,
    MAX_CHUNK_BYTES,
    Chunk,
    ChunkDType,
    Mismatch,
    chain_hashes,
    chain_root,
    chunk_key,
    config_digest,
    decode_chunk,
    encode_chunk,
    next_hash,
)
from understudy.errors import InvalidArgument

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

ROOT = hmac.digest(b"tenant secret", b"model", "sha256")
DIGEST = config_digest("model", "", "float32", 4, "exact")
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=24)


def _chunk(**changes: object) -> Chunk:
    fields = {
        "config_digest": DIGEST,
        "hash": b"h" * 32,
        "parent": b"p" * 32,
        "num_tokens": 4,
        "payload": b"keys and values",
    }
    return Chunk(**{**fields, **changes})


@UNHURRIED
@given(tokens=TOKENS, more=TOKENS)
def test_equal_prefixes_have_equal_names_whatever_follows(tokens: list[int], more: list[int]):
    hashes = chain_hashes(ROOT, DIGEST, tokens, 4)
    assert len(hashes) == len(tokens) // 4
    assert chain_hashes(ROOT, DIGEST, tokens + more, 4)[: len(hashes)] == hashes


@UNHURRIED
@given(tokens=st.lists(st.integers(0, 50), min_size=8, max_size=8), at=st.integers(0, 7))
def test_a_different_token_changes_its_chunk_and_all_after_it(tokens: list[int], at: int):
    other = [token + (index == at) for index, token in enumerate(tokens)]
    pairs = zip(
        chain_hashes(ROOT, DIGEST, tokens, 4), chain_hashes(ROOT, DIGEST, other, 4), strict=True
    )
    assert [same == different for same, different in pairs] == [at >= 4, False]


def test_a_chain_is_repeated_hashing_from_its_root():
    tokens = list(range(8))
    first = next_hash(chain_root(ROOT, DIGEST), tokens[:4])
    assert chain_hashes(ROOT, DIGEST, tokens, 4) == [first, next_hash(first, tokens[4:])]


def test_names_follow_the_written_format():
    name = chain_hashes(b"r" * 32, b"c" * 32, [1, 2, 3, 4], 4)[0].hex()
    assert name == _reference(b"r" * 32, b"c" * 32, [1, 2, 3, 4])


def _reference(root: bytes, digest: bytes, tokens: list[int]) -> str:
    def fields(*values: bytes) -> bytes:
        joined = b"".join(len(value).to_bytes(8, "little") + value for value in values)
        return hashlib.sha256(joined).digest()

    packed = b"".join(token.to_bytes(4, "little") for token in tokens)
    return fields(fields(root, digest), packed).hex()


@pytest.mark.parametrize("position", range(5))
def test_every_field_of_the_config_digest_counts(position: int):
    fields = ["model", "adapter", "float32", 16, "exact"]
    other = list(fields)
    other[position] = 32 if position == 3 else "other"
    assert config_digest(*fields) != config_digest(*other)


def test_fields_of_the_config_digest_do_not_run_into_each_other():
    assert config_digest("ab", "c", "d", 1, "e") != config_digest("a", "bc", "d", 1, "e")


def test_two_tenants_share_no_names():
    other = hmac.digest(b"another secret", b"model", "sha256")
    assert not set(chain_hashes(ROOT, DIGEST, range(64), 4)) & set(
        chain_hashes(other, DIGEST, range(64), 4)
    )


def test_a_key_names_tenant_config_and_hash():
    key = chunk_key("acme-1", DIGEST, b"\1" * 32)
    assert key == f"kv1:acme-1:{DIGEST.hex()[:24]}:{'01' * 32}"


@pytest.mark.parametrize("tenant", ["", "a:b", "A", "a" * 64, "a\n", "kv*"])
def test_a_tenant_cannot_break_out_of_its_place_in_the_key(tenant: str):
    with pytest.raises(InvalidArgument, match="tenant"):
        chunk_key(tenant, DIGEST, b"\1" * 32)


@pytest.mark.parametrize(
    "call",
    [
        lambda: chain_root(b"short", DIGEST),
        lambda: chain_root(ROOT, b"short"),
        lambda: chain_hashes(ROOT, DIGEST, [1], 0),
        lambda: next_hash(ROOT, [-1]),
        lambda: next_hash(ROOT, [2**32]),
        lambda: chunk_key("a", DIGEST, b"short"),
        lambda: encode_chunk(_chunk(parent=b"short")),
        lambda: encode_chunk(_chunk(payload=b"\0" * MAX_CHUNK_BYTES)),
    ],
)
def test_malformed_names_and_chunks_are_refused(call):
    with pytest.raises(InvalidArgument):
        call()


@UNHURRIED
@given(payload=st.binary(max_size=300), dtype=st.sampled_from(ChunkDType))
def test_a_chunk_round_trips(payload: bytes, dtype: ChunkDType):
    chunk = _chunk(payload=payload, dtype=dtype)
    data = encode_chunk(chunk)
    assert len(data) == HEADER_BYTES + len(payload)
    assert decode_chunk(data, DIGEST, chunk.hash) == chunk


@UNHURRIED
@given(data=st.data())
def test_no_flipped_bit_is_served(data: st.DataObject):
    encoded = bytearray(encode_chunk(_chunk()))
    bit = data.draw(st.integers(0, len(encoded) * 8 - 1))
    encoded[bit // 8] ^= 1 << bit % 8
    assert isinstance(decode_chunk(encoded, DIGEST, b"h" * 32), Mismatch)


@UNHURRIED
@given(data=st.binary(max_size=400))
def test_arbitrary_bytes_are_a_mismatch(data: bytes):
    assert isinstance(decode_chunk(data, DIGEST, b"h" * 32), Mismatch)


def test_another_chunk_or_another_config_is_not_served():
    data = encode_chunk(_chunk())
    assert decode_chunk(data, DIGEST, b"x" * 32) is Mismatch.HASH
    assert decode_chunk(data, b"x" * 32, b"h" * 32) is Mismatch.CONFIG
    assert decode_chunk(data[:-1], DIGEST, b"h" * 32) is Mismatch.LENGTH
    assert decode_chunk(b"NOPE" + data[4:], DIGEST, b"h" * 32) is Mismatch.MAGIC


@pytest.mark.parametrize(
    ("offset", "mismatch"),
    [(4, Mismatch.VERSION), (6, Mismatch.DTYPE), (7, Mismatch.CODEC), (136, Mismatch.CHECKSUM)],
)
def test_a_wrong_field_is_told_apart(offset: int, mismatch: Mismatch):
    data = bytearray(encode_chunk(_chunk()))
    data[offset] ^= 0xFF
    assert decode_chunk(data, DIGEST, b"h" * 32) is mismatch
