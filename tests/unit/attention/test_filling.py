"""The plan of a step: its budget, and the share of it that batch priority gets."""

from dataclasses import replace

from services.attention.filling import StepPlan
from services.attention.sequence import Priority, Sequence
from tests.unit.attention.parts import submission


def sequence(sequence_id: int, priority: Priority = Priority.STANDARD) -> Sequence:
    return Sequence(replace(submission(sequence_id), priority=priority), sequence_id)


def test_batch_priority_has_its_share_of_what_is_left():
    plan = StepPlan(10, 4)
    plan.add(sequence(1, Priority.BATCH), 3)
    assert (plan.room(Priority.BATCH), plan.room(Priority.STANDARD)) == (1, 7)
    plan.add(sequence(2), 7)
    assert (plan.room(Priority.BATCH), plan.room(Priority.STANDARD)) == (0, 0)


def test_room_is_never_negative():
    plan = StepPlan(10, 1)
    plan.add(sequence(1, Priority.BATCH), 5)
    assert plan.room(Priority.BATCH) == 0


def test_withdrawn_chunk_gives_its_tokens_back():
    plan, first, second = StepPlan(10, 4), sequence(1, Priority.BATCH), sequence(2)
    plan.add(first, 3)
    plan.add(second, 5)
    plan.withdraw(first)
    plan.withdraw(first)
    assert first not in plan
    assert [chunk.sequence for chunk in plan.chunks] == [second]
    assert (plan.room(Priority.BATCH), plan.room(Priority.STANDARD)) == (4, 5)
