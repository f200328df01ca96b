"""Who may ask: API keys, known by their SHA-256 only, and the KV roots of tenants."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from understudy.errors import InvalidArgument, Unauthenticated
from understudy.serving import Followed

OPEN_TENANT: Final = "default"
_TENANT: Final = re.compile(r"[a-z0-9-]{1,63}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_BEARER: Final = "bearer "

Keys = Callable[[], Mapping[bytes, str]]
"""Returns tenants by the SHA-256 of their keys; none means that requests need no key."""


class Tenants:
    """Maps API keys to tenants; without keys everybody is the tenant "default"."""

    def __init__(self, keys: Keys, secret: bytes) -> None:
        """Take what says the keys of the moment, and the secret behind KV roots."""
        self._keys = keys
        self._secret = secret

    def authenticate(self, authorization: str | None) -> str:
        """Return the tenant of an `Authorization` value; raises Unauthenticated."""
        keys = self._keys()
        if not keys:
            return OPEN_TENANT
        if not authorization or authorization[: len(_BEARER)].lower() != _BEARER:
            raise Unauthenticated(
                "No API key came with the request; send `authorization: Bearer <key>`."
            )
        digest = hashlib.sha256(authorization[len(_BEARER) :].strip().encode()).digest()
        owner = ""
        for known, tenant in keys.items():
            # Every key is compared, so that time tells nothing about which one came close.
            owner = tenant if hmac.compare_digest(known, digest) else owner
        if not owner:
            raise Unauthenticated("The API key belongs to no tenant.")
        return owner

    def kv_root(self, tenant: str, model_digest: bytes) -> bytes:
        """Return the root of a tenant's KV hash chain for a model, 32 bytes; reveals no secret."""
        tenant_secret = hmac.digest(self._secret, tenant.encode(), "sha256")
        return hmac.digest(tenant_secret, model_digest, "sha256")


def follow_keys(path: Path, read: Keys) -> Followed[Mapping[bytes, str]]:
    """Return the keys of a file that may change; `read` reads it and raises UnderstudyError.

    A file that held keys and holds none any more is refused: it would let everybody in.
    """
    is_closed = False

    def keys() -> Mapping[bytes, str]:
        nonlocal is_closed
        found = read()
        if is_closed and not found:
            raise InvalidArgument(
                f"The file {path} holds no keys any more, which would open the router to "
                "everybody; write one that nobody has, or restart the router to open it.",
                {"field": "api_keys"},
            )
        is_closed = bool(found)
        return found

    return Followed("API keys", (path,), keys)


def parse_keys(text: str) -> dict[bytes, str]:
    """Read `[{"tenant": "acme", "sha256": "<hex>"}]`; empty text means open.

    Raises InvalidArgument naming the entry that is malformed.
    """
    if not text.strip():
        return {}
    try:
        entries = json.loads(text)
        return {_digest(entry): _tenant(entry) for entry in entries}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidArgument(
            f'API keys are a JSON list of {{"tenant", "sha256"}}; this one is not: {error!r}.',
            {"field": "api_keys"},
        ) from error


def _tenant(entry: Mapping[str, str]) -> str:
    if not _TENANT.fullmatch(entry["tenant"]):
        raise ValueError(f"tenant {entry['tenant']!r} does not match [a-z0-9-]{{1,63}}")
    return entry["tenant"]


def _digest(entry: Mapping[str, str]) -> bytes:
    if not _SHA256.fullmatch(entry["sha256"]):
        raise ValueError(
            f"the sha256 of tenant {entry['tenant']!r} is not 64 lower-case hex digits"
        )
    return bytes.fromhex(entry["sha256"])
