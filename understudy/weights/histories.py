"""What one owner of folders has in a volume, had before, and tried since without success."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from understudy.weights.settings import FOLDER

MAX_HISTORY_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class History:
    """Names of folders, each list in order and without repetition."""

    now: tuple[str, ...] = ()
    """What the last run that published all of it wanted."""
    before: tuple[str, ...] = ()
    """What was there until then."""
    tried: tuple[str, ...] = ()
    """What runs since then wanted."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names."""
        return (*self.now, *self.before, *self.tried)

    @property
    def text(self) -> str:
        """What `read_history` reads."""
        return json.dumps({"now": self.now, "before": self.before, "tried": self.tried})

    def trying(self, wanted: Sequence[str]) -> "History":
        """Return the history while a run publishes what it wants."""
        return replace(self, tried=_ordered({*self.tried, *wanted}))

    def having(self, wanted: Sequence[str], is_published: Callable[[str], bool]) -> "History":
        """Return the history once all of what is wanted is published."""
        now = _ordered({*wanted})
        former = self.before if now == self.now else self.now
        halves = filter(is_published, self.tried)
        return History(now, _ordered({*former, *halves} - {*now}))


def read_history(path: Path) -> History:
    """Return an owner's history; names that are no folders are left out."""
    try:
        with path.open("rb") as file:
            said = json.loads(file.read(MAX_HISTORY_BYTES))
        now, before, tried = (_names(said[key]) for key in ("now", "before", "tried"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return History()
    return History(now, before, tried)


def _names(said: Iterable[object]) -> tuple[str, ...]:
    return _ordered({name for name in said if isinstance(name, str) and FOLDER.fullmatch(name)})


def _ordered(names: set[str]) -> tuple[str, ...]:
    return tuple(sorted(names))
