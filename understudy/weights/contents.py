"""What a folder of weights must hold: the sha256 of every file, as `sha256sum` writes it."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from understudy.errors import FailedPrecondition

SUMS: Final = "SHA256SUMS"
"""The file of a source that says what is beside it; its own digest is what one has to know."""
MAX_SUMS_BYTES: Final = 1024 * 1024
MAX_FILES: Final = 10_000
MAX_NAME_BYTES: Final = 512
MAX_PART_BYTES: Final = 200
RESERVED: Final = ".understudy"
CHUNK_BYTES: Final = 1024 * 1024
_LINE: Final = re.compile(r"([0-9a-f]{64}) [ *](\S.*)")
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Contents:
    """The sha256 (hex) of every file by its name, which is a relative POSIX path."""

    files: Mapping[str, str]

    def __post_init__(self) -> None:
        if not 1 <= len(self.files) <= MAX_FILES:
            raise FailedPrecondition(
                f"The sums name {len(self.files)} files; at least one is needed, and {MAX_FILES}"
                " are the most."
            )
        folders = {str(parent) for name in self.files for parent in PurePosixPath(name).parents}
        for name in self.files:
            check_name(name)
            if name in folders:
                raise FailedPrecondition(f"The sums name {name!r} as a file and as a folder.")

    @property
    def text(self) -> str:
        """The sums as `sha256sum` writes them, in the order of names."""
        return "".join(f"{digest}  {name}\n" for name, digest in sorted(self.files.items()))


def parse_sums(text: str) -> Contents:
    """Read lines of `sha256sum`; empty ones and comments (`#`) are skipped.

    Raises FailedPrecondition naming the line, a name that leaves its folder, or one that comes
    twice.
    """
    files: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise FailedPrecondition(
                f"Line {number} of the sums is {line[:100]!r}; each is a sha256 in hex, two spaces"
                " and a name, as `sha256sum` writes it."
            )
        digest, name = found[1], found[2].removeprefix("./")
        if name in files:
            raise FailedPrecondition(f"The sums name {name!r} twice.")
        files[name] = digest
    return Contents(files)


def parse_digest(digest: str) -> str:
    """Return the hex of `sha256:<hex>`. Raises FailedPrecondition."""
    found = _DIGEST.fullmatch(digest)
    if found is None:
        raise FailedPrecondition(
            f"The digest is {digest[:100]!r}; write sha256: and 64 hexadecimal digits."
        )
    return found[1]


def check_name(name: str) -> None:
    """Raise FailedPrecondition for a name that could lead anywhere but below its folder."""
    parts = name.split("/")
    is_bad = (
        not name.isprintable()
        or "\\" in name
        or any(part in ("", ".", "..") for part in parts)
        or any(len(part.encode()) > MAX_PART_BYTES for part in parts)
        or len(name.encode()) > MAX_NAME_BYTES
        or parts[0].startswith(RESERVED)
    )
    if is_bad:
        raise FailedPrecondition(
            f"The name {name[:100]!r} is refused: files are named by relative paths without '..',"
            f" of at most {MAX_NAME_BYTES} bytes, that do not begin with {RESERVED!r}."
        )


def sums_of(folder: Path) -> Contents:
    """Return the sums of all files of a folder. Raises FailedPrecondition where it has none."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {str(path.relative_to(folder)): path for path in found if path.name != SUMS}
    return Contents({name: hash_file(path).hexdigest() for name, path in names.items()})


def hash_file(path: Path) -> "hashlib._Hash":
    """Return the running sha256 of a file, to be read or gone on with."""
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
