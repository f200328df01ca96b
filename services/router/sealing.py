"""Authenticated encryption of journal entries: AES-256-GCM, each bound to its place."""

from __future__ import annotations

import base64
import binascii
import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from understudy.errors import FailedPrecondition, InvalidArgument

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12


class Sealer:
    """Seals and opens bytes with one key; `place` says where they belong and is authenticated."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, data: bytes, place: str) -> bytes:
        """Return nonce and ciphertext."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, place.encode())

    def open(self, sealed: bytes, place: str) -> bytes:
        """Return the data; FailedPrecondition when it was altered, moved or sealed otherwise."""
        try:
            return self._cipher.decrypt(
                sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], place.encode()
            )
        except (InvalidTag, ValueError) as error:
            raise FailedPrecondition(
                "A journal entry cannot be opened; every replica needs the same journal key."
            ) from error


def parse_key(text: str) -> bytes:
    """Read a base64 key of 32 bytes."""
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error as error:
        raise InvalidArgument("The journal key is not base64.", {"field": "journal_key"}) from error
    if len(key) != KEY_BYTES:
        raise InvalidArgument(
            f"The journal key has {len(key)} bytes; it needs {KEY_BYTES}.",
            {"field": "journal_key"},
        )
    return key
