"""Which chunks are worth a place in Redis: those that came up often enough."""

from collections import OrderedDict
from typing import Final

MAX_REMEMBERED: Final = 65_536


class Admission:
    """Counts how often each key was put, for the most recent keys. Belongs to one thread."""

    def __init__(self, num_touches: int, max_remembered: int = MAX_REMEMBERED) -> None:
        self._num_touches = num_touches
        self._max_remembered = max_remembered
        self._touches: OrderedDict[str, int] = OrderedDict()

    def admits(self, key: str) -> bool:
        """Count one more touch of `key` and return whether it has had enough."""
        if self._num_touches <= 1:
            return True
        touches = self._touches.pop(key, 0) + 1
        self._touches[key] = touches
        if len(self._touches) > self._max_remembered:
            self._touches.popitem(last=False)
        return touches >= self._num_touches
