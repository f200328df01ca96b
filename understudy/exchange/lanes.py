"""Credits of one pair: each is a lane, a number below the credits granted."""

from collections import deque

from understudy.errors import InvalidArgument


class Lanes:
    """The sender's side: which lanes are free."""

    def __init__(self, num_credits: int) -> None:
        self._free = deque(range(num_credits))
        self._busy: set[int] = set()

    @property
    def has_free(self) -> bool:
        """Whether a message may be sent now."""
        return bool(self._free)

    def take(self) -> int:
        """Return a free lane and occupy it; the caller looks at `has_free` first."""
        assert self._free, "a lane was taken where every credit is spent"
        lane = self._free.popleft()
        self._busy.add(lane)
        return lane

    def give_back(self, lane: int) -> None:
        """Free a lane whose message was answered.

        Raises InvalidArgument for a lane that was not taken.
        """
        if lane not in self._busy:
            raise InvalidArgument(f"Lane {lane} is not in flight; its answer came from nowhere.")
        self._busy.remove(lane)
        self._free.append(lane)
