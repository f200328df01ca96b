"""Content of files that may change while the process runs.

The files are looked at when somebody asks for what they hold: no thread, no timer, and a swap of
the kubelet's `..data` link is seen at once. Content that cannot be used leaves what is in use,
is told once, and is tried again now and then: what was refused for the clock or for rights on a
file may be right later, without any change of the files.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Final, Generic, TypeVar

from understudy.errors import UnderstudyError

RETRY_S: Final = 10.0
"""Least time between two readings of files that have not changed since they were refused."""

Signature = tuple[tuple[int, int, int], ...]
"""Inode, time of change and size of each file; the zeros of a file that is not there."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


def sign_of(paths: Iterable[Path]) -> Signature:
    """Return what differs as soon as one of the files is another one."""
    return tuple(_sign(path) for path in paths)


class Followed(Generic[T]):
    """What some files hold: the last of it that could be used. Used from any thread."""

    def __init__(
        self,
        what: str,
        paths: Sequence[Path],
        read: Callable[[], T],
        *,
        facts: Callable[[T], Mapping[str, str]] = lambda _: {},
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read nothing yet. `what` is a plural for the log, and `facts` go with it there.

        `read` raises UnderstudyError for content that cannot be used; its message is logged.
        """
        self._what, self._paths, self._read = what, tuple(paths), read
        self._facts, self._clock_s = facts, clock_s
        self._lock = Lock()
        self._content: T | None = None
        self._sign: Signature = ()
        self._refusal = ""
        self._read_again_s = 0.0
        self._listeners: list[Callable[[], None]] = []

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever new content cannot be used, on the thread that found it."""
        with self._lock:
            self._listeners.append(listener)

    def current(self) -> T:
        """Return what is in use, which is what the files hold unless that cannot be used.

        Raises what reading raises as long as nothing could ever be used.
        """
        listeners: Sequence[Callable[[], None]] = ()
        with self._lock:
            sign = sign_of(self._paths)
            has_changed, self._sign = sign != self._sign, sign
            if self._content is None:
                self._content = self._read()
            elif (has_changed or self._is_due()) and not self._replace(is_again=not has_changed):
                listeners = tuple(self._listeners)
            content = self._content
        for listener in listeners:
            listener()
        return content

    def is_refused(self) -> bool:
        """Look at the files; return whether what they hold cannot be used."""
        try:
            self.current()
        except UnderstudyError:
            return True
        with self._lock:
            return bool(self._refusal)

    def _is_due(self) -> bool:
        return bool(self._refusal) and self._clock_s() >= self._read_again_s

    def _replace(self, *, is_again: bool) -> bool:
        """Take up what the files hold; returns False for a refusal that was not told before."""
        try:
            content = self._read()
        except UnderstudyError as error:
            is_known = is_again and error.message == self._refusal
            self._refusal = error.message
            self._read_again_s = self._clock_s() + RETRY_S
            if not is_known:
                _log.error(
                    "The new %s cannot be used; those in use stay. %s", self._what, error.message
                )
            return is_known
        self._content, self._refusal = content, ""
        _log.info("The %s are new.", self._what, extra=dict(self._facts(content)))
        return True


def _sign(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_ino, found.st_mtime_ns, found.st_size
