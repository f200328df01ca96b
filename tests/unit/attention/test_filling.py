"""The plan of a step: its budget, and the share of it that batch priority gets."""

from dataclasses import replace

from services.attention.filling import BACKLOG_STEPS, StepPlan, shared_budget
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


def test_a_prompt_about_doubles_a_step_that_decodes():
    assert shared_budget(256, 8, 1, 2000) == 8
    assert shared_budget(256, 8, 20, 2000) == 40


def test_prompts_that_queue_are_read_within_the_steps_promised():
    backlog = 100 * BACKLOG_STEPS
    assert shared_budget(256, 8, 1, backlog) == 100
    steps = 0
    while backlog > 0:
        backlog -= shared_budget(256, 8, 0, 100 * BACKLOG_STEPS)
        steps += 1
    assert steps == BACKLOG_STEPS


def test_no_backlog_makes_a_step_larger_than_the_whole_budget():
    assert shared_budget(256, 8, 4, 10**9) == 256
