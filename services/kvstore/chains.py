"""The chunks of one sequence, checked where they enter the kvstore."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from understudy.chunks import MAX_CHAIN_HASHES, chunk_key
from understudy.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Chain:
    """Hashes from the head (or from the first one wanted) with their keys."""

    config_digest: bytes
    hashes: tuple[bytes, ...]
    keys: tuple[str, ...]

    @classmethod
    def checked(cls, tenant: str, config_digest: bytes, hashes: Sequence[bytes]) -> Self:
        """Raise InvalidArgument for a malformed tenant, digest or hash, or above 4,096 hashes."""
        if len(hashes) > MAX_CHAIN_HASHES:
            raise InvalidArgument(
                f"A chain has at most {MAX_CHAIN_HASHES} hashes, not {len(hashes)}.",
                {"field": "hashes"},
            )
        keys = tuple(chunk_key(tenant, config_digest, hash_) for hash_ in hashes)
        return cls(config_digest, tuple(hashes), keys)
