"""The header of a GGUF file: metadata and where each tensor lies, checked against the file's size.

Read from our own parser because a start-up must not decode token tables where it wants weights,
because a tokenizer must not take an object for each of their entries, and because a truncated or
hostile file must end in one clear error.
Format: github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3, little-endian.
"""

import math
import mmap
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gguf

from understudy.errors import FailedPrecondition

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
STRING, ARRAY = 8, 9
SCALARS: Final[Mapping[int, str]] = {
    **dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?"))),
    **dict(enumerate(("Q", "q", "d"), start=10)),
}
MAX_ENTRIES: Final = 1 << 16
MAX_DIMENSIONS: Final = 4
MAX_KEPT_ITEMS: Final = 64
MAX_WANTED_ITEMS: Final = 1 << 22
DEFAULT_ALIGNMENT: Final = 32


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies; `shape` is in torch's order, outermost first."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    start: int
    size_bytes: int

    @property
    def row_bytes(self) -> int:
        """The bytes of one innermost row."""
        return self.size_bytes // max(1, math.prod(self.shape[:-1]))


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata (arrays longer than 64 items left out unless wanted) and the tensors of a file."""

    metadata: Mapping[str, object]
    tensors: tuple[TensorEntry, ...]


def map_file(path: Path) -> memoryview:
    """Return the bytes of a file, read as they are used. Raises FailedPrecondition naming it."""
    try:
        with path.open("rb") as opened:
            return memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise FailedPrecondition(f"{path.name} cannot be read: {error}.") from error


def parse_header(file: str, content: memoryview, wanted: Collection[str] = ()) -> GgufHeader:
    """Parse the header of `content`, the whole file; `wanted` names arrays to keep at any length.

    Raises FailedPrecondition naming `file`, and the tensor whose data the file does not hold.
    """
    cursor = _Cursor(file, content)
    if cursor.take(4) != MAGIC:
        raise FailedPrecondition(f"{file} is no GGUF file.")
    version = cursor.integer("I")
    if version not in VERSIONS:
        raise FailedPrecondition(f"{file} is GGUF version {version}; 2 and 3 are read.")
    num_tensors, num_keys = cursor.count("tensors"), cursor.count("metadata keys")
    metadata: dict[str, object] = {}
    for _ in range(num_keys):
        key = cursor.text()
        most = MAX_WANTED_ITEMS if key in wanted else MAX_KEPT_ITEMS
        value = cursor.value(cursor.integer("I"), most)
        if value is not None:
            metadata[key] = value
    entries = [_tensor(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= MAX_ENTRIES:
        raise FailedPrecondition(f"{file} has the alignment {alignment!r}.")
    data_start = -(-cursor.offset // alignment) * alignment
    return GgufHeader(metadata, tuple(_placed(file, len(content), data_start, e) for e in entries))


@dataclass(slots=True)
class _Cursor:
    file: str
    content: memoryview
    offset: int = 0

    def take(self, size: int) -> bytes:
        self.skip(size)
        return bytes(self.content[self.offset - size : self.offset])

    def skip(self, size: int) -> None:
        if size > len(self.content) - self.offset:
            raise FailedPrecondition(
                f"{self.file} is truncated: its header needs {size} bytes at offset {self.offset},"
                f" the file has {len(self.content)}."
            )
        self.offset += size

    def integer(self, code: str) -> int:
        return int(self._scalar(code))

    def count(self, what: str) -> int:
        number = self.integer("Q")
        if number > MAX_ENTRIES:
            raise FailedPrecondition(
                f"{self.file} claims {number} {what}; at most {MAX_ENTRIES} are read."
            )
        return number

    def text(self) -> str:
        try:
            return self.take(self.integer("Q")).decode("utf-8")
        except UnicodeDecodeError as error:
            raise FailedPrecondition(f"{self.file} has a header string of no UTF-8.") from error

    def value(self, kind: int, most: int) -> object:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self._array(most)
        return self._scalar(self._code(kind))

    def _array(self, most: int) -> list[object] | None:
        kind, length = self.integer("I"), self.integer("Q")
        if length <= most and kind != ARRAY:
            return [self.value(kind, most) for _ in range(length)]
        if kind == STRING:
            self._skip_strings(length)
        else:
            self.skip(struct.calcsize(self._code(kind)) * length)
        return None

    def _skip_strings(self, length: int) -> None:
        # The hot loop of the parser: about 100,000 tokens and merges a file.
        read, offset, limit = struct.Struct("<Q").unpack_from, self.offset, len(self.content) - 8
        for _ in range(length):
            if offset > limit:
                # The length itself lies beyond the end: let `skip` say so.
                offset += 8
                break
            offset += 8 + int(read(self.content, offset)[0])
        self.skip(offset - self.offset)

    def _scalar(self, code: str) -> int | float | bool:
        scalar: int | float | bool = struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]
        return scalar

    def _code(self, kind: int) -> str:
        if kind not in SCALARS:
            raise FailedPrecondition(f"{self.file} has metadata of the unknown type {kind}.")
        return SCALARS[kind]


def _tensor(cursor: _Cursor) -> TensorEntry:
    name, num_dimensions = cursor.text(), cursor.integer("I")
    if not 0 < num_dimensions <= MAX_DIMENSIONS:
        raise FailedPrecondition(
            f"{cursor.file} has {name!r} with {num_dimensions} dimensions.", {"tensor": name}
        )
    shape = tuple(cursor.integer("Q") for _ in range(num_dimensions))[::-1]
    number, offset = cursor.integer("I"), cursor.integer("Q")
    try:
        kind = gguf.GGMLQuantizationType(number)
    except ValueError as error:
        raise FailedPrecondition(
            f"{cursor.file} has {name!r} in the unknown type {number}.", {"tensor": name}
        ) from error
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if shape[-1] % block_size:
        raise FailedPrecondition(
            f"{cursor.file} has {name!r} with rows of {shape[-1]}, no multiple of {block_size}.",
            {"tensor": name},
        )
    size_bytes = math.prod(shape) // block_size * block_bytes
    return TensorEntry(name, shape, kind, offset, size_bytes)


def _placed(file: str, size: int, data_start: int, entry: TensorEntry) -> TensorEntry:
    start = data_start + entry.start
    if start + entry.size_bytes > size:
        raise FailedPrecondition(
            f"{file} is truncated: {entry.name!r} needs {entry.size_bytes} bytes at offset {start},"
            f" the file has {size}.",
            {"tensor": entry.name},
        )
    return TensorEntry(entry.name, entry.shape, entry.kind, start, entry.size_bytes)
