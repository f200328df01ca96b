"""Who gives its blocks back when they run out. Pure functions over plain data.

The least urgent class goes first; within a class the tenant that was served most, then the
youngest. Who was preempted `MAX_PREEMPTIONS` times is spared for as long as anybody else can go,
so that no sequence is computed over and over for the sake of others.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Final

from services.attention.sequence import Priority, Sequence

MAX_PREEMPTIONS: Final = 3


@dataclass(frozen=True, slots=True)
class Standing:
    """What counts when a victim is chosen; `served` is its tenant's counter in its class."""

    priority: Priority
    served: int
    num_preemptions: int
    arrival: int

    @property
    def is_spared(self) -> bool:
        """Whether it has given way often enough."""
        return self.num_preemptions >= MAX_PREEMPTIONS


@dataclass(frozen=True, slots=True)
class Preemption:
    """A sequence that gave its blocks back: their contents stand until the next forward.

    The first `num_sealed` of `blocks` are those of the sequence's first hashes.
    """

    sequence: Sequence
    blocks: tuple[int, ...]
    num_sealed: int


def choose_victim(needy: Standing, running: Items[Standing]) -> Standing:
    """Return who gives way to the growth of `needy`, which is one of `running`.

    Nobody more urgent than `needy` does; `needy` itself may.
    """
    candidates = [standing for standing in running if standing.priority >= needy.priority]
    return min(candidates, key=_order)


def victims_for_admission(priority: Priority, running: Items[Standing]) -> list[Standing]:
    """Return who may give way to a waiting sequence: less urgent ones, the first to go first."""
    candidates = [s for s in running if s.priority > priority and not s.is_spared]
    return sorted(candidates, key=_order)


def _order(standing: Standing) -> tuple[bool, int, int, int]:
    return (standing.is_spared, -standing.priority, -standing.served, -standing.arrival)
