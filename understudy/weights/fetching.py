"""Fetches models: several files at once, each resumed where it broke off and checked at its end."""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from understudy.errors import Cancelled, FailedPrecondition, Unavailable
from understudy.weights.contents import hash_file
from understudy.weights.places import Origin, Place, open_origin
from understudy.weights.settings import ModelSource
from understudy.weights.store import Store, share
from understudy.weights.web import Body, OutOfRange, Web

FILES_AT_ONCE: Final = 4
ATTEMPTS: Final = 6
"""Failures in a row, without a byte between them, after which a file is given up."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
TELL_EVERY_S: Final = 10.0
MIB: Final = 1024 * 1024
log = logging.getLogger(__name__)


class Meter:
    """Counts the bytes of one model against their limit, and tells how it goes; for any thread."""

    def __init__(
        self, model: ModelSource, num_files: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._model, self._num_files, self._clock = model, num_files, clock
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}
        self._num_done, self._came_bytes = 0, 0
        self._began = self._told = clock()
        self.is_over = threading.Event()
        """Set when a file failed, so that the others stop too."""

    def expect(self, name: str, size_bytes: int) -> None:
        """Say how large a file is going to be. Raises FailedPrecondition beyond the limit."""
        with self._lock:
            total = sum(self._sizes.values()) - self._sizes.get(name, 0) + size_bytes
        if total > self._model.max_bytes:
            raise FailedPrecondition(
                f"{self._model.folder} has more than {self._model.max_bytes} bytes: {name} was the"
                " one too many. Raise the limit if that is right."
            )

    def add(self, name: str, size_bytes: int, came_bytes: int) -> None:
        """Say how much of a file is here and how much just came. Raises as `expect`, Cancelled."""
        if self.is_over.is_set():
            raise Cancelled(f"{name} was stopped because another file failed.")
        self.expect(name, size_bytes)
        with self._lock:
            self._sizes[name] = size_bytes
            self._came_bytes += came_bytes
            if self._clock() - self._told < TELL_EVERY_S:
                return
            self._told = self._clock()
            rate = self._came_bytes / max(self._told - self._began, 1e-9) / MIB
            total = sum(self._sizes.values()) / MIB
        log.info("%s: %d of %d files, %.0f MiB so far, %.1f MiB/s.", self._model.folder,
                 self._num_done, self._num_files, total, rate)  # fmt: skip

    def finish(self, name: str) -> None:
        """Say that a file is checked."""
        with self._lock:
            self._num_done += 1
        log.info("%s: %s is what it must be.", self._model.folder, name)


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches models into one volume."""

    store: Store
    web: Callable[[ModelSource], Web]
    """Opens the connections for a model's source."""
    sleep: Callable[[float], None] = time.sleep

    def fetch(self, model: ModelSource) -> bool:
        """Publish a model; returns whether anything had to be done.

        Raises FailedPrecondition naming the file that is not what it must be, or too large;
        Unavailable where the source stays away; NotFound and Unauthenticated.
        """
        web = self.web(model)
        try:
            origin = self._open(model, web)
            faults = self.store.faults(model.folder, origin.contents)
            if faults == []:
                log.info("%s is there and is what it must be.", model.folder)
                return False
            if faults is not None:
                log.warning("%s: %s changed since it was checked.", model.folder, faults[0])
                self.store.withdraw(model.folder, faults)
            self._fetch_files(model, origin)
            self.store.publish(model.folder, origin.contents)
            log.info("%s is published.", model.folder)
            return True
        finally:
            web.close()

    def _fetch_files(self, model: ModelSource, origin: Origin) -> None:
        files, parts = self.store.checked(model.folder), self.store.parts(model.folder)
        meter = Meter(model, len(origin.contents.files))
        known = self.store.published()
        tasks = [
            FileFetch(origin.place, name, digest, parts / f"{digest}.{number}", files / name,
                      known.get(digest), meter, self.sleep)
            for number, (name, digest) in enumerate(sorted(origin.contents.files.items()))
        ]  # fmt: skip
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            futures = [pool.submit(task.run) for task in tasks]
            _, waiting = wait(futures, return_when=FIRST_EXCEPTION)
            if waiting:
                meter.is_over.set()
                for future in waiting:
                    future.cancel()
        failed = [future.exception() for future in futures if not future.cancelled()]
        causes = [error for error in failed if error and not isinstance(error, Cancelled)]
        if causes:
            raise causes[0]

    def _open(self, model: ModelSource, web: Web) -> Origin:
        for attempt in range(ATTEMPTS):
            try:
                return open_origin(model, web)
            except Unavailable as error:
                log.warning("%s is tried again: %s", model.source, error.message)
                self.sleep(pause_s(attempt))
        return open_origin(model, web)


@dataclass(frozen=True, slots=True)
class FileFetch:
    """One file of a model."""

    place: Place
    name: str
    digest: str
    part: Path
    target: Path
    known: Path | None
    """A published file that was checked to hold the same."""
    meter: Meter
    sleep: Callable[[float], None]

    def run(self) -> None:
        """Bring the file to its target, checked. Raises what `Fetcher.fetch` raises."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        if self.known is not None and not self.target.is_file() and share(self.known, self.target):
            log.info("%s is the file that %s has already.", self.name, self.known)
        if self.target.is_file():
            if hash_file(self.target).hexdigest() == self.digest:
                self.meter.add(self.name, self.target.stat().st_size, 0)
                self.meter.finish(self.name)
                return
            self.target.unlink()
        was_resumed = self.part.is_file()
        found = self._download()
        if found != self.digest and was_resumed:
            log.warning("%s does not fit what was kept of it and is begun again.", self.name)
            self.part.unlink()
            found = self._download()
        if found != self.digest:
            self.part.unlink()
            raise FailedPrecondition(
                f"{self.name} is sha256:{found}, not sha256:{self.digest}: it is not published."
                " Either the source changed or the digest is another file's."
            )
        self.part.replace(self.target)
        self.meter.finish(self.name)

    def _download(self) -> str:
        """Go on until the source has no more; returns the digest of what came."""
        hashed = hash_file(self.part) if self.part.is_file() else hashlib.sha256()
        failures = 0
        if hashed.hexdigest() == self.digest:
            return self.digest
        while True:
            before = self._size()
            try:
                return self._advance(hashed)
            except OutOfRange as error:
                if before == 0:
                    raise FailedPrecondition(
                        f"{self.name} was asked for from its start on, and refused as out of range:"
                        " is the source a file?"
                    ) from error
                self.part.unlink()
                hashed = hashlib.sha256()
            except Unavailable as error:
                failures = 0 if self._size() > before else failures + 1
                if failures >= ATTEMPTS:
                    raise
                log.warning("%s is resumed: %s", self.name, error.message)
                self.sleep(pause_s(failures))
                hashed = hash_file(self.part) if self.part.is_file() else hashlib.sha256()

    def _advance(self, hashed: "hashlib._Hash") -> str:
        with self.place.open(self.name, self._size()) as body:
            if body.offset == 0:
                hashed = hashlib.sha256()
            if body.remaining_bytes is not None:
                self.meter.expect(self.name, body.offset + body.remaining_bytes)
            self._append(body, hashed)
        return hashed.hexdigest()

    def _append(self, body: Body, hashed: "hashlib._Hash") -> None:
        size = body.offset
        with self.part.open("r+b" if self.part.is_file() else "w+b") as file:
            file.truncate(body.offset)
            file.seek(body.offset)
            for chunk in body.chunks:
                size += len(chunk)
                self.meter.add(self.name, size, len(chunk))
                file.write(chunk)
                hashed.update(chunk)
            file.flush()
            os.fsync(file.fileno())

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0


def pause_s(failures: int) -> float:
    """Return how long to wait after so many failures in a row."""
    return min(FIRST_PAUSE_S * 2.0**failures, LONGEST_PAUSE_S)
