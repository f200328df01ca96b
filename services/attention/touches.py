"""Which chunks are worth writing: those that came up often enough and are not in the store yet."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

MAX_TOUCHED: Final = 65_536
MAX_STORED_S: Final = 600.0
"""How long a chunk counts as stored; a store that was restarted or has evicted it says nothing."""


class Touched(NamedTuple):
    """How often a chunk was seen, and until when it counts as stored."""

    num_touches: int = 0
    stored_until_s: float = -math.inf


class TouchFilter:
    """Second-touch admission: a chunk is due once it has been seen `threshold` times.

    It stays due, touch after touch, until it is marked as stored.
    """

    def __init__(
        self,
        threshold: int,
        max_touched: int = MAX_TOUCHED,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threshold = threshold
        self._max_touched = max_touched
        self._clock_s = clock_s
        self._touched: OrderedDict[bytes, Touched] = OrderedDict()

    def touch(self, chain_hash: bytes) -> bool:
        """Count one sequence that has this chunk; return whether it should be written now."""
        touched = self._touched.get(chain_hash, Touched())
        self._keep(chain_hash, touched._replace(num_touches=touched.num_touches + 1))
        return touched.num_touches + 1 >= self._threshold and not self.is_stored(chain_hash)

    def is_stored(self, chain_hash: bytes) -> bool:
        """Return whether this chunk was written, or came from the store, not too long ago."""
        touched = self._touched.get(chain_hash)
        return touched is not None and self._clock_s() < touched.stored_until_s

    def mark_stored(self, chain_hash: bytes) -> None:
        """Remember that the store has this chunk; it needs no further touches to be due again."""
        touched = self._touched.get(chain_hash, Touched())
        count = max(self._threshold, touched.num_touches)
        self._keep(chain_hash, Touched(count, self._clock_s() + MAX_STORED_S))

    def mark_absent(self, chain_hash: bytes) -> None:
        """Remember that the store does not have this chunk."""
        touched = self._touched.get(chain_hash)
        if touched is not None:
            self._touched[chain_hash] = touched._replace(stored_until_s=-math.inf)

    def _keep(self, chain_hash: bytes, touched: Touched) -> None:
        self._touched[chain_hash] = touched
        self._touched.move_to_end(chain_hash)
        if len(self._touched) > self._max_touched:
            self._touched.popitem(last=False)
