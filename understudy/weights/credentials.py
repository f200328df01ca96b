"""Credentials as a Secret mounts them: a folder with a file per key."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from understudy.errors import FailedPrecondition

MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Secret:
    """The keys of one Secret, or of none."""

    folder: Path | None

    @property
    def is_there(self) -> bool:
        """Whether there are credentials; without them everything is read as everybody may."""
        return self.folder is not None

    def find(self, key: str) -> str | None:
        """Return what a key holds, without the spaces around it; None where it is not there."""
        if self.folder is None or not (self.folder / key).is_file():
            return None
        with (self.folder / key).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise FailedPrecondition(
                f"The key {key} of the Secret has more than {MAX_BYTES} bytes."
            )
        return content.decode("utf-8", errors="replace").strip()

    def read(self, key: str) -> str:
        """Return what a key holds. Raises FailedPrecondition where it is not there or empty."""
        found = self.find(key)
        if not found:
            raise FailedPrecondition(
                f"The Secret with the credentials lacks the key {key}: add it, or name no Secret to"
                " read what everybody may."
            )
        return found
