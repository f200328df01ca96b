"""KV chunks as they are named, framed and checked, on both sides of the kvstore.

A chunk is a run of tokens with the keys and values of every layer. Its name is a SHA-256 chained
over token ids from a tenant's root, so that equal names mean equal prefixes, equal model, equal
adapter and equal tenant. Whatever does not check out is a miss, never an error.
"""

from understudy.chunks.codec import (
    HEADER_BYTES,
    MAX_CHUNK_BYTES,
    Chunk,
    ChunkDType,
    Mismatch,
    decode_chunk,
    encode_chunk,
)
from understudy.chunks.naming import (
    HASH_BYTES,
    MAX_CHAIN_HASHES,
    chain_hashes,
    chain_root,
    chunk_key,
    config_digest,
    next_hash,
)

__all__ = [
    "HASH_BYTES",
    "HEADER_BYTES",
    "MAX_CHAIN_HASHES",
    "MAX_CHUNK_BYTES",
    "Chunk",
    "ChunkDType",
    "Mismatch",
    "chain_hashes",
    "chain_root",
    "chunk_key",
    "config_digest",
    "decode_chunk",
    "encode_chunk",
    "next_hash",
]
