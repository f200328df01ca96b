"""The volume: models' folders, each complete and named by what it holds, and what is on its way.

    <folder>/                 published: the files, and RECORD, what they were checked to be
    .fetching/<folder>/parts  what came so far of files
    .fetching/<folder>/files  files that were checked
    .fetching/made/<work>     what a pod of a Job makes (making.py)
    .fetching/wanted          what each owner has, had before, and tries
    .fetching/lock            held while a Job works here

A folder is made ready beside its place and renamed, so whoever looks sees all of it or nothing.
Files that published folders have in common are one file with several names, where the file system
has hard links: nothing here ever writes into a file that is published.
Every owner of folders has a history there. Nothing is removed before all of what it wants now is
published, so a run that fails takes nothing away; what it had before stays even then, since workers
may still read it and a rollback wants it; only a volume that is full for what is wanted now gives
it up. What is in no history is not ours.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from understudy.errors import Unavailable
from understudy.weights.contents import RESERVED, Contents, hash_file, sums_of
from understudy.weights.histories import History, read_history
from understudy.weights.making import FILES, Workshop, write_synced

RECORD: Final = f"{RESERVED}.json"
FETCHING: Final = ".fetching"
WANTED: Final = "wanted"
MADE: Final = "made"
MAX_DRAFT_CHARS: Final = 200
MAX_RECORD_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Seen:
    """What a checked file looked like."""

    sha256: str
    size_bytes: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path, sha256: str) -> "Seen":
        """Look at a file whose digest is known."""
        status = path.stat()
        return cls(sha256, status.st_size, status.st_mtime_ns)


class Store:
    """One volume."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._fetching = root / FETCHING
        self.workshop = Workshop(self._fetching / MADE)

    def parts(self, folder: str) -> Path:
        """Where parts of a model's files lie."""
        return self._made(self._fetching / folder / "parts")

    def checked(self, folder: str) -> Path:
        """Where a model's checked files lie until all are there."""
        return self._made(self._fetching / folder / "files")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Work here alone. Raises Unavailable while another Job does."""
        with (self._made(self._fetching) / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise Unavailable(
                    f"Another Job works in {self._root}; this one is tried again when it ended."
                ) from error
            yield

    def faults(self, folder: str, contents: Contents) -> list[str] | None:
        """Return the names of published files that are not what they must be; None: no folder.

        A file that looks as when it was checked is not read again; one that does not is.
        """
        record = read_record(self._root / folder)
        if record is None:
            return None
        return [
            name
            for name, digest in contents.files.items()
            if not self._is_good(self._root / folder / name, digest, record.get(name))
        ]

    def withdraw(self, folder: str, faults: Sequence[str]) -> None:
        """Take a published folder back to be mended, without the named files."""
        home = self._fetching / folder / "files"
        shutil.rmtree(home, ignore_errors=True)
        self._made(home.parent)
        (self._root / folder).rename(home)
        for name in (RECORD, *faults):
            (home / name).unlink(missing_ok=True)

    def publish(self, folder: str, contents: Contents) -> None:
        """Put the checked files in their place, all at once, and forget the parts."""
        home = self.checked(folder)
        for path in sorted(home.rglob("*"), reverse=True):
            if path.is_file() and str(path.relative_to(home)) not in contents.files:
                path.unlink()
        self._place(home, folder, contents)
        shutil.rmtree(self._fetching / folder)

    def is_whole(self, folder: str) -> bool:
        """Whether a folder is published and is what its record says."""
        record = read_record(self._root / folder)
        if record is None:
            return False
        return not self.faults(folder, Contents({name: one.sha256 for name, one in record.items()}))

    def adopt(self, folder: str, work: str) -> bool:
        """Publish what was made, hashed; where the folder is published and whole that one stays.

        Returns whether it was published. Raises FailedPrecondition where nothing was made.
        """
        home = self.workshop.part(work, FILES)
        is_new = not self.is_whole(folder)
        if is_new:
            contents = sums_of(home)
            known = self.published()
            for name, digest in contents.files.items():
                if digest in known:
                    share(known[digest], home / name)
            self._place(home, folder, contents)
        self.workshop.remove(work)
        return is_new

    def published(self) -> dict[str, Path]:
        """Return a published file for each sha256 that one is known to have."""
        return {
            seen.sha256: folder / name
            for folder in self._root.iterdir()
            for name, seen in (read_record(folder) or {}).items()
            if (folder / name).is_file() and Seen.of(folder / name, seen.sha256) == seen
        }

    def make_room(self, owner: str, wanted: Sequence[str]) -> list[str]:
        """Remove what an owner had before what it has, though a rollback may want it.

        For a volume that is full. Returns the names of the removed folders.
        """
        history = read_history(self._history(owner))
        kept = self._kept(owner, [*wanted, *history.now])
        gone = [name for name in {*history.before, *history.tried} - kept if self._has(name)]
        for name in gone:
            shutil.rmtree(self._root / name, ignore_errors=True)
        self._write(owner, History(history.now, (), tuple(sorted(wanted))))
        return sorted(gone)

    def want(self, owner: str, wanted: Sequence[str]) -> None:
        """Note what an owner is going to publish; parts of what it tried before go."""
        history = read_history(self._history(owner))
        for name in {*history.tried} - self._kept(owner, [*wanted, *history.now, *history.before]):
            shutil.rmtree(self._fetching / name, ignore_errors=True)
        self._write(owner, history.trying(wanted))

    def prune(self, owner: str, wanted: Sequence[str]) -> list[str]:
        """Remove what an owner had earlier, and nobody else wants, once all it wants is published.

        What it had until now stays, with what it published of runs that failed since. Returns the
        names of the removed folders.
        """
        history = read_history(self._history(owner))
        after = history.having(wanted, lambda name: read_record(self._root / name) is not None)
        gone = {*history.before, *history.tried} - self._kept(owner, [*after.now, *after.before])
        removed = sorted(name for name in gone if self._has(name))
        for name in removed:
            shutil.rmtree(self._root / name, ignore_errors=True)
        for name in {*gone, *history.now} - self._kept(owner, wanted):
            shutil.rmtree(self._fetching / name, ignore_errors=True)
        self._write(owner, after)
        return removed

    def _place(self, home: Path, folder: str, contents: Contents) -> None:
        seen = {name: Seen.of(home / name, digest) for name, digest in contents.files.items()}
        record = {name: [one.sha256, one.size_bytes, one.changed_ns] for name, one in seen.items()}
        write_synced(home / RECORD, json.dumps(record))
        shutil.rmtree(self._root / folder, ignore_errors=True)
        home.rename(self._root / folder)
        sync_folder(self._root)

    def _has(self, folder: str) -> bool:
        return (self._root / folder).is_dir()

    def _history(self, owner: str) -> Path:
        return self._made(self._fetching / WANTED) / owner

    def _write(self, owner: str, history: History) -> None:
        path = self._history(owner)
        if history != read_history(path):
            write_synced(path, history.text)

    def _kept(self, owner: str, names: Sequence[str]) -> set[str]:
        home = self._made(self._fetching / WANTED)
        others = [read_history(path) for path in home.iterdir() if path.name != owner]
        return {*names, *(name for other in others for name in other.names)}

    def _is_good(self, path: Path, digest: str, seen: Seen | None) -> bool:
        if not path.is_file():
            return False
        if seen is not None and seen == Seen.of(path, digest):
            return True
        return hash_file(path).hexdigest() == digest

    def _made(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def read_record(folder: Path) -> Mapping[str, Seen] | None:
    """Return what a published folder was checked to hold; None where it is not published."""
    try:
        with (folder / RECORD).open("rb") as file:
            said = json.loads(file.read(MAX_RECORD_BYTES))
        return {name: Seen(*fields) for name, fields in said.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def share(known: Path, target: Path) -> bool:
    """Give a published file a second name in place of a file that holds the same.

    Returns False where the file system has no hard links, or no more of them.
    """
    draft = target.with_name(f".{target.name[:MAX_DRAFT_CHARS]}.shared")
    try:
        draft.unlink(missing_ok=True)
        draft.hardlink_to(known)
        draft.replace(target)
    except OSError:
        draft.unlink(missing_ok=True)
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
