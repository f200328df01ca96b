"""The source of a grammar and its hash: all that travels; each side compiles for itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

from understudy.errors import UnsupportedSchema

GrammarKind = Literal["lark", "json_schema"]
MAX_SOURCE_BYTES: Final = 256 * 1024


def source_hash(kind: GrammarKind, source: str) -> bytes:
    """Return the SHA-256 (32 bytes) by which both ends know a grammar: kind, NUL, source."""
    return hashlib.sha256(f"{kind}\0{source}".encode()).digest()


@dataclass(frozen=True)
class GrammarSource:
    """A grammar as text; refuses sources above 256 KiB."""

    kind: GrammarKind
    source: str

    def __post_init__(self) -> None:
        size_bytes = len(self.source.encode())
        if size_bytes > MAX_SOURCE_BYTES:
            raise UnsupportedSchema(
                f"The grammar has {size_bytes} bytes; at most {MAX_SOURCE_BYTES} are compiled.",
                {"field": "grammar"},
            )

    @cached_property
    def hash(self) -> bytes:
        """SHA-256 of kind and source, 32 bytes."""
        return source_hash(self.kind, self.source)
