"""A chunk as bytes: a header of 136 bytes, then keys and values.

    0   magic "AKVC"      4   version u16     6   dtype u8    7   codec u8
    8   config digest     40  chunk hash      72  parent hash (32 bytes each)
    104 tokens u32        108 zero u32        112 payload length u64
    120 XXH3-128 over the header before it and the payload

The payload is [layer][entry][head][token][dim], the entries being keys and values, or latents and
rotated keys; after an int8 entry come its scales. The checksum finds damage; who may write is the
matter of Redis access lists, and a reader that is asked for one hash accepts no other.
"""

import enum
import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

from xxhash import xxh3_128

from understudy.chunks.naming import HASH_BYTES
from understudy.errors import InvalidArgument

MAGIC: Final = b"AKVC"
VERSION: Final = 1
_HEAD: Final = struct.Struct("<4sHBB32s32s32sIIQ")
_CHECKSUM_BYTES: Final = 16
HEADER_BYTES: Final = _HEAD.size + _CHECKSUM_BYTES
MAX_CHUNK_BYTES: Final = 16 * 1024 * 1024
_RAW: Final = 0

Buffer: TypeAlias = bytes | bytearray | memoryview


class ChunkDType(enum.IntEnum):
    """Element type of what is cached per token."""

    FLOAT32 = 1
    FLOAT16 = 2
    BFLOAT16 = 3
    INT8 = 4


class Mismatch(enum.StrEnum):
    """Why bytes are not the chunk that was asked for; the label of a counter."""

    LENGTH = "length"
    MAGIC = "magic"
    VERSION = "version"
    CONFIG = "config"
    HASH = "hash"
    DTYPE = "dtype"
    CODEC = "codec"
    CHECKSUM = "checksum"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Keys and values of a run of tokens, with what they depend on."""

    config_digest: bytes
    hash: bytes
    parent: bytes
    """Hash of the chunk before; of the chain's root for the first one."""
    num_tokens: int
    payload: Buffer
    dtype: ChunkDType = ChunkDType.FLOAT32


def encode_chunk(chunk: Chunk) -> bytes:
    """Return header and payload as one run of bytes; the payload is copied once.

    Raises InvalidArgument for digests that are not 32 bytes, and above 16 MiB.
    """
    payload_bytes = memoryview(chunk.payload).nbytes
    for value in (chunk.config_digest, chunk.hash, chunk.parent):
        if len(value) != HASH_BYTES:
            raise InvalidArgument(f"A chunk's digests have {HASH_BYTES} bytes, not {len(value)}.")
    if payload_bytes + HEADER_BYTES > MAX_CHUNK_BYTES:
        raise InvalidArgument(
            f"A chunk of {payload_bytes} bytes exceeds the limit of "
            f"{MAX_CHUNK_BYTES - HEADER_BYTES}; use smaller blocks."
        )
    head = _HEAD.pack(
        MAGIC,
        VERSION,
        chunk.dtype,
        _RAW,
        chunk.config_digest,
        chunk.hash,
        chunk.parent,
        chunk.num_tokens,
        0,
        payload_bytes,
    )
    return b"".join((head, _checksum(head, chunk.payload), chunk.payload))


def decode_chunk(data: Buffer, config_digest: bytes, chunk_hash: bytes) -> Chunk | Mismatch:
    """Return the chunk in `data`, its payload a view, or why it is not the one asked for."""
    view = memoryview(data)
    if not HEADER_BYTES <= len(view) <= MAX_CHUNK_BYTES:
        return Mismatch.LENGTH
    magic, version, dtype, codec, config, found, parent, num_tokens, _, payload_bytes = (
        _HEAD.unpack_from(view)
    )
    checks = (
        (magic == MAGIC, Mismatch.MAGIC),
        (version == VERSION, Mismatch.VERSION),
        (payload_bytes == len(view) - HEADER_BYTES, Mismatch.LENGTH),
        (config == config_digest, Mismatch.CONFIG),
        (found == chunk_hash, Mismatch.HASH),
        (dtype in _DTYPES, Mismatch.DTYPE),
        (codec == _RAW, Mismatch.CODEC),
    )
    for is_right, mismatch in checks:
        if not is_right:
            return mismatch
    payload = view[HEADER_BYTES:]
    if view[_HEAD.size : HEADER_BYTES] != _checksum(view[: _HEAD.size], payload):
        return Mismatch.CHECKSUM
    return Chunk(config, found, parent, num_tokens, payload, ChunkDType(dtype))


_DTYPES: Final = frozenset(ChunkDType)


def _checksum(head: Buffer, payload: Buffer) -> bytes:
    state = xxh3_128(head)
    state.update(payload)
    return bytes(state.digest())
