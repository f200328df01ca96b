"""The order of the line: class, tenant, prefix; and that everyone's turn comes."""

from collections import Counter
from dataclasses import replace

from services.attention.sequence import Priority, Sequence
from services.attention.waiting import PATIENCE, TURN, WaitingLine
from tests.unit.attention.parts import submission


class Rig:
    """A line over prefixes that are given by hand."""

    def __init__(self) -> None:
        self.served: Counter[str] = Counter()
        self.prefixes: dict[int, str] = {}
        self.available = ""
        self.num_added = 0
        self.line = WaitingLine(
            served=lambda sequence: self.served[sequence.tenant],
            hashes=self._hashes,
            num_available=lambda hashes: sum(h.decode() in self.available for h in hashes),
        )

    def add(
        self, priority: Priority = Priority.STANDARD, tenant: str = "a", prefix: str = ""
    ) -> Sequence:
        self.num_added += 1
        sequence_id = self.num_added
        self.prefixes[sequence_id] = prefix
        wanted = replace(submission(sequence_id), priority=priority, tenant=tenant)
        sequence = Sequence(wanted, sequence_id)
        self.line.add(sequence)
        return sequence

    def take(self, priority: Priority) -> int | None:
        sequence = self.line.next(priority, ())
        if sequence is None:
            return None
        self.line.note_admission(sequence)
        self.line.remove(sequence)
        return sequence.key.sequence_id

    def _hashes(self, sequence: Sequence) -> list[bytes]:
        prefix = self.prefixes[sequence.key.sequence_id]
        return [prefix[: end + 1].encode() for end in range(len(prefix))]


def test_least_served_tenant_is_next_and_its_sequences_keep_their_order():
    rig = Rig()
    rig.served["greedy"] = 10
    rig.add(tenant="greedy")
    second = rig.add(tenant="modest")
    rig.add(tenant="modest")
    assert rig.line.next(Priority.STANDARD, ()) is second


def test_classes_are_asked_for_one_by_one_and_skipped_ones_are_left_out():
    rig = Rig()
    first, second = rig.add(), rig.add()
    assert rig.line.next(Priority.INTERACTIVE, ()) is None
    assert rig.line.next(Priority.STANDARD, {first.key}) is second
    assert rig.line.count(Priority.STANDARD) == len(rig.line) == 2


def test_batch_priority_goes_by_largest_sharing_and_finishes_a_group_it_began():
    rig = Rig()
    for prefix in ("ab1", "xyz1", "", "xyz2", "ab2"):
        rig.add(Priority.BATCH, prefix=prefix)
    assert rig.take(Priority.BATCH) == 2
    rig.available = "xyz"
    for prefix in ("ab3", "ab4", "ab5"):  # now the larger group, but another one has begun
        rig.add(Priority.BATCH, prefix=prefix)
    assert [rig.take(Priority.BATCH) for _ in range(7)] == [4, 1, 5, 6, 7, 8, 3]


def test_overdue_sequence_gets_one_turn_in_so_many():
    rig = Rig()
    old = rig.add(Priority.BATCH)
    for _ in range(PATIENCE[Priority.BATCH]):
        assert rig.line.overdue() is None
        rig.add()
        rig.take(Priority.STANDARD)
    also_old = rig.add(Priority.BATCH)
    also_old.waiting_since = 0
    assert rig.line.overdue() is old
    rig.line.note_admission(old)
    rig.line.remove(old)
    for _ in range(TURN - 1):
        assert rig.line.overdue() is None
        rig.add()
        rig.take(Priority.STANDARD)
    assert rig.line.overdue() is also_old
