"""The metadata every call carries: the request id and the API key."""

import re
import secrets
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Final

REQUEST_ID_KEY: Final = "x-request-id"
AUTHORIZATION_KEY: Final = "authorization"

Pairs = tuple[tuple[str, str], ...]

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_current: ContextVar[str] = ContextVar("understudy_request_id", default="")


def new_request_id() -> str:
    """A request id nobody else uses: 32 hex digits."""
    return secrets.token_hex(16)


def accept_request_id(candidate: str | None) -> str:
    """The caller's id where well formed (at most 128 of [A-Za-z0-9._:-]), else a new one."""
    if candidate is not None and _REQUEST_ID.fullmatch(candidate):
        return candidate
    return new_request_id()


def set_current_request_id(request_id: str) -> None:
    """Make `request_id` the one of the call being served by this task."""
    _current.set(request_id)


def current_request_id() -> str:
    """The id of the call being served by this task; empty outside one."""
    return _current.get()


def request_metadata(request_id: str | None = None, api_key: str | None = None) -> Pairs:
    """Metadata of an outgoing call; without a request id, the id being served is passed on."""
    pairs = ((REQUEST_ID_KEY, request_id or current_request_id() or new_request_id()),)
    if api_key is None:
        return pairs
    return (*pairs, (AUTHORIZATION_KEY, f"Bearer {api_key}"))


def find(pairs: Iterable[tuple[str, str | bytes]] | None, key: str) -> str | None:
    """The first text value under `key`, or None; binary values are not text."""
    for name, value in pairs or ():
        if name == key and isinstance(value, str):
            return value
    return None
