"""The plan of a step: its budget, and the share of it that batch priority gets."""

from dataclasses import replace

import pytest

from services.attention.filling import (
    BACKLOG_STEPS,
    StepPlan,
    doubling_context,
    shared_budget,
)
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


def test_a_step_grows_with_what_waits_to_be_read_up_to_the_whole_budget():
    assert shared_budget(256, 8, 1, 100 * BACKLOG_STEPS) == 100
    assert shared_budget(256, 8, 80, 100 * BACKLOG_STEPS) == 160
    assert shared_budget(256, 8, 4, 10**9) == 256


def prompt(sequence_id: int, num_computed: int, num_tokens: int = 4000) -> Sequence:
    found = Sequence(submission(sequence_id, range(num_tokens)), sequence_id)
    found.prefill_target, found.num_computed = num_tokens, num_computed
    return found


@pytest.mark.parametrize(
    ("num_computed", "num_fitting"), [(0, 8), (64, 7), (512, 4), (1000, 3), (1900, 2), (3900, 1)]
)
def test_late_tokens_of_a_prompt_come_in_smaller_chunks(num_computed: int, num_fitting: int):
    plan = StepPlan(8, 8, doubling=512)
    assert plan.fitting(prompt(1, num_computed)) == num_fitting


def test_a_decode_takes_one_of_the_budget_whatever_its_context():
    plan, decoding = StepPlan(8, 8, doubling=512), prompt(1, 3999)
    decoding.prefill_target = 3999
    plan.add(decoding, 1)
    assert plan.room(Priority.STANDARD) == 7


def test_two_prompts_share_what_their_contexts_leave():
    plan = StepPlan(8, 8, doubling=512)
    late, early = prompt(1, 1536), prompt(2, 0)
    plan.add(late, 1)
    assert plan.fitting(early) == 4
    plan.withdraw(late)
    assert plan.fitting(early) == 8


def test_a_prompt_advances_however_late_it_is_while_there_is_room():
    plan = StepPlan(1, 1, doubling=1)
    assert plan.fitting(prompt(1, 3000)) == 1
    plan.add(prompt(1, 3000), 1)
    assert plan.fitting(prompt(2, 0)) == 0


def test_context_that_doubles_a_token_follows_from_what_it_multiplies():
    assert doubling_context(layer_macs=6 * 512 * 100, attention_macs=100) == 512
    assert doubling_context(layer_macs=1, attention_macs=100) == 1
