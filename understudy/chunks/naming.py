"""Names of chunks: the config digest, the hash chain over token ids, the Redis key.

Every hash is SHA-256 over length-prefixed fields, so that no two lists of fields collide by being
joined; tokens are little-endian u32. No pickle, nothing that depends on the process.
"""

import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from understudy.errors import InvalidArgument

HASH_BYTES: Final = 32
MAX_CHAIN_HASHES: Final = 4096
"""Hashes of one look-up or read; whoever has more asks for the first of them."""
LAYOUT: Final = "layer-kv-head-token-dim"
_FORMAT: Final = "kv1"
_KEY_DIGEST_HEX: Final = 24
_TENANT: Final = re.compile(r"[a-z0-9-]{1,63}")
MAX_TOKEN_ID: Final = 2**32 - 1


def config_digest(
    model_digest: str, adapter_digest: str, dtype: str, block_size: int, compute_mode: str
) -> bytes:
    """Return the digest of everything that keys and values depend on besides the tokens.

    `model_digest` covers weights, config (rope and what a layer caches included) and their file;
    the tokenizer needs no place of its own because chains are over token ids. `adapter_digest` is
    empty for none.
    """
    fields = (_FORMAT, LAYOUT, model_digest, adapter_digest, dtype, str(block_size), compute_mode)
    return _digest(*(field.encode() for field in fields))


def chain_root(root: bytes, config_digest: bytes) -> bytes:
    """Return the parent of a chain's first chunk: the tenant's root bound to one config.

    Raises InvalidArgument unless both are 32 bytes.
    """
    return _digest(_checked(root, "KV root"), _checked(config_digest, "config digest"))


def next_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Return the hash of the chunk of `tokens` that follows `parent`."""
    if len(tokens) and not 0 <= min(tokens) <= max(tokens) <= MAX_TOKEN_ID:
        raise InvalidArgument("Token ids of a chunk are 32-bit numbers that are not negative.")
    return _digest(parent, np.asarray(tokens, dtype="<u4").tobytes())


def chain_hashes(
    root: bytes, config_digest: bytes, tokens: Sequence[int], chunk_tokens: int
) -> list[bytes]:
    """Return the hashes of all full chunks of `tokens`, from the head; a rest has no hash.

    Raises InvalidArgument for a chunk length below one, or a root or digest that is not 32 bytes.
    """
    if chunk_tokens < 1:
        raise InvalidArgument(f"A chunk holds at least one token, not {chunk_tokens}.")
    parent = chain_root(root, config_digest)
    hashes = []
    for start, stop in pairwise(range(0, len(tokens) + 1, chunk_tokens)):
        parent = next_hash(parent, tokens[start:stop])
        hashes.append(parent)
    return hashes


def chunk_key(tenant: str, config_digest: bytes, chunk_hash: bytes) -> str:
    """Return the Redis key `kv1:<tenant>:<config digest>:<hash>`.

    Raises InvalidArgument for a tenant that is not [a-z0-9-]{1,63}: keys are also what a tenant's
    access list matches, so nothing may break out of its place.
    """
    if not _TENANT.fullmatch(tenant):
        raise InvalidArgument(
            f"The tenant {tenant[:64]!r} is not 1 to 63 of the characters a-z, 0-9 and '-'.",
            {"field": "tenant"},
        )
    config = _checked(config_digest, "config digest").hex()[:_KEY_DIGEST_HEX]
    return f"{_FORMAT}:{tenant}:{config}:{_checked(chunk_hash, 'chunk hash').hex()}"


def _checked(value: bytes, what: str) -> bytes:
    if len(value) != HASH_BYTES:
        raise InvalidArgument(f"The {what} has {len(value)} bytes; it must have {HASH_BYTES}.")
    return value


def _digest(*fields: bytes) -> bytes:
    state = hashlib.sha256()
    for field in fields:
        state.update(len(field).to_bytes(8, "little"))
        state.update(field)
    return state.digest()
