"""What other programs make for a volume, in parts; a part that is finished is not made again.

    made/<work>/for           the folder that this is going to be
    made/<work>/<part>        what a step made, or is making
    made/<work>/<part>.done   what its files were when the step had ended

Every pod of a Job works in a folder of its own, since one on a lost node may still run. Who begins
takes over what others finished for the same folder and removes the rest: the latest to begin has
the volume.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

FILES: Final = "files"
"""The part that is published."""
FOR: Final = "for"
DONE: Final = ".done"
MAX_DONE_BYTES: Final = 8 * 1024 * 1024

Looks = dict[str, list[int]]
"""Size and time of change of files by their names."""


class Workshop:
    """The folder `made` of one volume."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def part(self, work: str, name: str) -> Path:
        """Where a step makes its part."""
        return self._home / work / name

    def begin(self, folder: str, work: str) -> None:
        """Take over what is finished for a folder; everything else that was made is removed."""
        own = self._home / work
        own.mkdir(parents=True, exist_ok=True)
        kept = set()
        for other in sorted(self._home.iterdir(), key=lambda one: one != own):
            for name in _finished(other) if _reads(other / FOR) == folder else ():
                if name in kept:
                    continue
                kept.add(name)
                if other != own:
                    (other / name).rename(own / name)
                    (other / f"{name}{DONE}").rename(own / f"{name}{DONE}")
        for other in self._home.iterdir():
            if other != own:
                shutil.rmtree(other, ignore_errors=True)
        stays = {FOR, *kept, *(f"{name}{DONE}" for name in kept)}
        for path in own.iterdir():
            if path.name not in stays:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_synced(own / FOR, folder)
        self.part(work, FILES).mkdir(exist_ok=True)

    def finish(self, work: str, name: str) -> None:
        """Note that a part is finished, once all of it is on the disk."""
        part = self.part(work, name)
        for path in part.rglob("*"):
            _sync(path)
        _sync(part)
        write_synced(part.with_name(f"{name}{DONE}"), json.dumps(_looks(part)))

    def is_finished(self, work: str, name: str) -> bool:
        """Whether a part is finished and is as it was then."""
        return _is_finished(self._home / work, name)

    def remove(self, work: str) -> None:
        """Remove what was made."""
        shutil.rmtree(self._home / work, ignore_errors=True)


def write_synced(path: Path, text: str) -> None:
    """Write a small file so that it is there after a power cut, or is as it was."""
    draft = path.with_name(f"{path.name}.new")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _finished(home: Path) -> Iterator[str]:
    names = [path.name.removesuffix(DONE) for path in home.glob(f"*{DONE}")]
    yield from (name for name in names if _is_finished(home, name))


def _is_finished(home: Path, name: str) -> bool:
    try:
        done = json.loads(_reads(home / f"{name}{DONE}"))
    except (ValueError, RecursionError):
        return False
    return bool(done) and (home / name).is_dir() and bool(done == _looks(home / name))


def _looks(part: Path) -> Looks:
    found = [(str(path.relative_to(part)), path.stat()) for path in part.rglob("*")
             if path.is_file()]  # fmt: skip
    return {name: [status.st_size, status.st_mtime_ns] for name, status in found}


def _reads(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_DONE_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
