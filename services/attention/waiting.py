"""The order in which waiting sequences are admitted: class, then tenant, then prefix or arrival.

Within a class the tenant that was served least goes first. A tenant's own sequences go in order of
arrival; those of batch priority go in the order of their prefix tree, the prefix already computed
and then the largest sharing first. So that nobody starves, every `TURN`th admission may go to the
sequence that was passed over longest, once that is more than its class has to bear.
"""

from bisect import insort
from collections.abc import Callable, Collection, Iterator
from types import MappingProxyType
from typing import Final

from services.attention.grouping import GroupKey, PrefixDemand, group_key
from services.attention.sequence import Priority, Sequence, SequenceKey

TURN: Final = 8
PATIENCE: Final = MappingProxyType(
    {Priority.INTERACTIVE: 16, Priority.STANDARD: 64, Priority.BATCH: 256}
)
"""Admissions of others that a sequence of each class has to bear before it is overdue."""


class WaitingLine:
    """Sequences that wait for blocks or for a place among those running."""

    def __init__(
        self,
        *,
        served: Callable[[Sequence], int],
        hashes: Callable[[Sequence], list[bytes]],
        num_available: Callable[[list[bytes]], int],
    ) -> None:
        """`served` is the counter of a sequence's tenant in its class; `hashes` names the blocks a
        sequence may reuse, of which `num_available` from the head are sealed.
        """
        self.demand = PrefixDemand()
        self._served = served
        self._hashes = hashes
        self._num_available = num_available
        self._lines: dict[Priority, list[Sequence]] = {priority: [] for priority in Priority}
        self._groups: dict[SequenceKey, tuple[int, GroupKey]] = {}
        self._are_groups_stale = False
        self._num_admissions = 0
        self._last_turn = 0

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def __iter__(self) -> Iterator[Sequence]:
        for line in self._lines.values():
            yield from line

    def count(self, priority: Priority) -> int:
        """Return how many sequences of a class wait."""
        return len(self._lines[priority])

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait."""
        insort(self._lines[sequence.priority], sequence, key=_arrival)
        if sequence.waiting_since is None:  # who was preempted has waited since it first came
            sequence.waiting_since = self._num_admissions
        self.demand.add(self._hashes(sequence))
        self._are_groups_stale = True

    def remove(self, sequence: Sequence) -> list[bytes]:
        """Take a sequence out; return the prefixes that no waiting sequence needs any more."""
        self._lines[sequence.priority].remove(sequence)
        self._groups.pop(sequence.key, None)
        return self.demand.remove(self._hashes(sequence))

    def note_admission(self, sequence: Sequence) -> None:
        """Count an admission; that of an overdue sequence uses the turn up."""
        if self._is_overdue(sequence):
            self._last_turn = self._num_admissions
        self._num_admissions += 1

    def next(self, priority: Priority, skipped: Collection[SequenceKey]) -> Sequence | None:
        """Return who is next in a class, apart from those `skipped`."""
        if priority is Priority.BATCH:
            self._refresh_groups()
        candidates = (s for s in self._lines[priority] if s.key not in skipped)
        return min(candidates, key=self._place, default=None)

    def overdue(self) -> Sequence | None:
        """Return who was passed over for longer than its class has to bear, when it is its turn."""
        if self._num_admissions - self._last_turn < TURN:
            return None
        late = [s for line in self._lines.values() for s in line if self._is_overdue(s)]
        return min(late, key=lambda sequence: sequence.arrival, default=None)

    def _is_overdue(self, sequence: Sequence) -> bool:
        assert sequence.waiting_since is not None, "It is not in the line."
        num_passed = self._num_admissions - sequence.waiting_since
        return num_passed >= PATIENCE[sequence.priority]

    def _place(self, sequence: Sequence) -> tuple[int, int, GroupKey, int]:
        num_missing, group = self._groups.get(sequence.key, (0, ()))
        return (self._served(sequence), num_missing, group, sequence.arrival)

    def _refresh_groups(self) -> None:
        if not self._are_groups_stale:
            return
        self._are_groups_stale = False
        for sequence in self._lines[Priority.BATCH]:
            hashes = self._hashes(sequence)
            group = group_key(hashes, self.demand.count)
            self._groups[sequence.key] = (-self._num_available(hashes), group)


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival
