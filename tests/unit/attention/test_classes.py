"""Classes, tenants and shared prefixes as the scheduler serves them, step by step."""

from dataclasses import replace

import pytest

from services.attention.scheduler import MAX_STALLED_STEPS, Scheduler
from services.attention.sequence import Phase, Priority, Sequence
from tests.unit.attention.parts import ROOT, make_scheduler, next_token, submission
from understudy.errors import ResourceExhausted

INTERACTIVE, STANDARD, BATCH = Priority


def add(
    scheduler: Scheduler,
    sequence_id: int,
    num_tokens: int,
    priority: Priority = STANDARD,
    *,
    tokens: range | None = None,
    **fields: object,
) -> Sequence:
    start = 3 + 100 * sequence_id
    chosen = range(start, start + num_tokens) if tokens is None else tokens
    wanted = submission(sequence_id, chosen, priority=priority, **fields)
    sequence = Sequence(wanted, sequence_id)
    scheduler.add(sequence, is_loading=False)
    return sequence


def step(scheduler: Scheduler) -> dict[int, int]:
    chunks = scheduler.schedule()
    for chunk in chunks:
        is_sampling = chunk.is_sampling
        scheduler.advance(chunk)
        if is_sampling:
            chunk.sequence.tokens.append(next_token(chunk.sequence.tokens))
    scheduler.check_integrity()
    return {chunk.sequence.key.sequence_id: chunk.num_tokens for chunk in chunks}


def test_urgent_prompt_overtakes_a_running_one():
    scheduler = make_scheduler(token_budget=4)
    add(scheduler, 1, 12)
    assert step(scheduler) == {1: 4}
    add(scheduler, 2, 3, INTERACTIVE)
    assert step(scheduler) == {2: 3, 1: 1}
    assert step(scheduler) == {2: 1, 1: 3}


def test_batch_priority_gets_all_of_a_step_alone_and_its_share_beside_others():
    scheduler = make_scheduler(token_budget=8, batch_share=0.25)
    add(scheduler, 1, 30, BATCH)
    assert step(scheduler) == {1: 8}
    urgent = add(scheduler, 2, 2, INTERACTIVE)
    assert step(scheduler) == {2: 2, 1: 2}
    assert step(scheduler) == {2: 1, 1: 2}
    scheduler.end(urgent)
    assert step(scheduler) == {1: 8}


def test_smaller_budget_holds_while_somebody_decodes():
    scheduler = make_scheduler(token_budget=16, mixed_budget=4)
    first = add(scheduler, 1, 20)
    assert step(scheduler) == {1: 16}
    assert step(scheduler) == {1: 4}
    add(scheduler, 2, 20)
    assert step(scheduler) == {1: 1, 2: 3}
    scheduler.end(first)
    assert step(scheduler) == {2: 16}


def test_late_tokens_count_for_several_only_while_somebody_decodes():
    scheduler = make_scheduler(num_blocks=64, token_budget=16, mixed_budget=5, doubling_context=16)
    decoding = add(scheduler, 1, 4)
    step(scheduler)
    add(scheduler, 2, 60)
    counts = [step(scheduler)[2] for _ in range(6)]
    assert counts == [4, 3, 3, 2, 2, 2]
    scheduler.end(decoding)
    assert step(scheduler) == {2: 16}


def test_a_smaller_budget_leaves_no_decode_out_and_doubles_with_them():
    scheduler = make_scheduler(num_blocks=32, token_budget=16, mixed_budget=4)
    for index in range(6):
        add(scheduler, index, 2)
        step(scheduler)
    add(scheduler, 9, 20)
    chunks = step(scheduler)
    assert chunks == {**dict.fromkeys(range(6), 1), 9: 6}


def test_a_step_beside_a_decode_grows_with_the_prompts_that_queue():
    scheduler = make_scheduler(num_blocks=400, token_budget=64, mixed_budget=4, max_sequences=8)
    add(scheduler, 1, 4)
    step(scheduler)
    for index in range(2, 5):
        add(scheduler, index, 1000)
    assert sum(step(scheduler).values()) == 12  # 3,000 tokens wait: a 256th of them
    add(scheduler, 9, 4000, BATCH)
    assert sum(step(scheduler).values()) == 12, "batch priority is in no hurry"


def test_batch_priority_alone_has_the_whole_budget_while_it_decodes():
    scheduler = make_scheduler(token_budget=16, mixed_budget=4)
    add(scheduler, 1, 4, BATCH)
    step(scheduler)
    add(scheduler, 2, 20, BATCH)
    assert step(scheduler) == {1: 1, 2: 15}


def test_urgent_sequence_takes_the_place_and_blocks_of_a_less_urgent_one():
    scheduler = make_scheduler(num_blocks=4, block_size=4, max_sequences=1)
    batch = add(scheduler, 1, 8, BATCH)
    step(scheduler)
    urgent = add(scheduler, 2, 12, INTERACTIVE)
    assert step(scheduler) == {2: 12}
    assert (batch.phase, urgent.phase) == (Phase.WAITING, Phase.RUNNING)
    (preemption,) = scheduler.take_preemptions()
    assert preemption.sequence is batch
    assert scheduler.take_preemptions() == []


def test_nobody_is_preempted_when_that_would_not_make_room():
    scheduler = make_scheduler(num_blocks=6, block_size=4)
    batch = add(scheduler, 1, 4, BATCH)
    standard = add(scheduler, 2, 8)
    step(scheduler)
    add(scheduler, 3, 20, STANDARD)
    step(scheduler)
    assert (batch.phase, standard.phase) == (Phase.RUNNING, Phase.RUNNING)
    assert scheduler.take_preemptions() == []


def test_class_that_finds_no_room_holds_the_less_urgent_back():
    scheduler = make_scheduler(num_blocks=6, block_size=4, token_budget=64)
    add(scheduler, 1, 12, INTERACTIVE)
    step(scheduler)
    add(scheduler, 2, 12, INTERACTIVE)
    add(scheduler, 3, 1, BATCH)
    assert step(scheduler) == {1: 1}


def test_preempted_for_growth_is_the_least_urgent_not_the_youngest():
    scheduler = make_scheduler(num_blocks=4, block_size=4, token_budget=64)
    batch = add(scheduler, 1, 4, BATCH)
    step(scheduler)
    urgent = add(scheduler, 2, 4, STANDARD)
    while batch.phase is Phase.RUNNING:
        step(scheduler)
    assert urgent.phase is Phase.RUNNING


def test_tenants_of_a_class_take_turns_by_served_tokens():
    scheduler = make_scheduler(num_blocks=64, max_sequences=1, max_waiting=64)
    first = [add(scheduler, index, 8, tenant="greedy") for index in range(4)]
    second = [add(scheduler, 10 + index, 8, tenant="modest") for index in range(2)]
    order = []
    while scheduler.sequences():
        (sequence_id,) = step(scheduler)
        order.append(sequence_id)
        scheduler.end(next(s for s in scheduler.sequences() if s.key.sequence_id == sequence_id))
    assert order == [0, 10, 1, 11, 2, 3]
    assert {s.phase for s in (*first, *second)} == {Phase.ENDED}


def test_a_tenant_with_long_answers_gets_fewer_turns_than_one_with_equal_prompts_and_short_ones():
    scheduler = make_scheduler(num_blocks=64, max_sequences=1, max_waiting=64)
    for index in range(24):
        add(scheduler, index, 8, tenant="brief" if index % 2 else "talker", max_tokens=9)
    turns = []
    while len(turns) < 12:
        (sequence_id,) = step(scheduler)
        one = next(s for s in scheduler.sequences() if s.key.sequence_id == sequence_id)
        if len(one.tokens) == {"talker": 17, "brief": 9}[one.submission.tenant]:
            turns.append(one.submission.tenant)
            scheduler.end(one)
    assert turns == ["talker", "brief", "brief", "brief"] * 3  # 8 + 2 * 8 against 8


def test_prefix_that_arrives_twice_together_is_computed_once():
    scheduler = make_scheduler(token_budget=64)
    first = add(scheduler, 1, 0, tokens=range(3, 16), kv_root=ROOT)
    second = add(scheduler, 2, 0, tokens=range(3, 15), kv_root=ROOT)
    assert step(scheduler) == {1: 13}
    assert scheduler.num_deferrals == 1
    assert step(scheduler) == {1: 1, 2: 4}
    assert second.blocks[:2] == first.blocks[:2]
    assert second.local_cached_tokens == 8


def test_others_go_ahead_while_one_waits_for_a_prefix():
    scheduler = make_scheduler(token_budget=6)
    add(scheduler, 1, 0, tokens=range(3, 12), kv_root=ROOT)
    add(scheduler, 2, 0, tokens=range(3, 13), kv_root=ROOT)
    add(scheduler, 3, 2)
    assert step(scheduler) == {1: 6}
    assert step(scheduler) == {1: 3, 3: 2}
    assert step(scheduler) == {1: 1, 3: 1, 2: 2}


def test_nobody_waits_for_a_prefix_of_someone_less_urgent():
    scheduler = make_scheduler(token_budget=8)
    add(scheduler, 1, 0, BATCH, tokens=range(3, 16), kv_root=ROOT)
    step(scheduler)
    add(scheduler, 2, 0, INTERACTIVE, tokens=range(3, 15), kv_root=ROOT)
    assert step(scheduler)[2] == 4  # two blocks are there, the third it computes itself
    assert scheduler.num_deferrals == 0


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_prefix_whose_maker_goes_away_is_computed_after_all(is_cancelled: bool):
    scheduler = make_scheduler(token_budget=4, num_blocks=8)
    maker = add(scheduler, 1, 0, tokens=range(3, 20), kv_root=ROOT)
    waiter = add(scheduler, 2, 0, tokens=range(3, 20), kv_root=ROOT)
    step(scheduler)
    if is_cancelled:
        scheduler.end(maker)
    else:
        add(scheduler, 3, 24, INTERACTIVE)
    for _ in range(30):
        step(scheduler)
        if waiter.num_output:
            return
        for urgent in scheduler.sequences():
            if urgent.priority is INTERACTIVE and urgent.num_output:
                scheduler.end(urgent)
    pytest.fail("The sequence was never computed.")


def test_batch_groups_are_served_one_after_the_other_and_held_until_done():
    scheduler = make_scheduler(num_blocks=12, max_sequences=1, max_waiting=64, token_budget=64)
    prefixes = [range(3, 11), range(50, 62)]
    for index in range(6):  # arrivals alternate between the two prefixes
        prefix = prefixes[index % 2]
        tokens = (*prefix, 200 + index)
        wanted = submission(index, tokens, priority=BATCH, kv_root=ROOT)
        scheduler.add(Sequence(wanted, index), is_loading=False)
    order, computed = [], []
    while scheduler.sequences():
        ((sequence_id, num_tokens),) = step(scheduler).items()
        order.append(sequence_id)
        computed.append(num_tokens)
        assert scheduler.num_held_blocks <= 3
        scheduler.end(next(s for s in scheduler.sequences() if s.key.sequence_id == sequence_id))
        scheduler.check_integrity()
    assert order == [1, 3, 5, 0, 2, 4]
    assert computed == [13, 1, 1, 9, 1, 1]
    assert scheduler.blocks.num_free == 12


def test_held_blocks_yield_to_an_urgent_prompt():
    scheduler = make_scheduler(num_blocks=6, block_size=4, max_sequences=1, token_budget=64)
    first = add(scheduler, 1, 0, BATCH, tokens=range(3, 16), kv_root=ROOT)
    step(scheduler)
    add(scheduler, 2, 0, BATCH, tokens=range(3, 16), kv_root=ROOT)
    scheduler.end(first)
    assert scheduler.num_held_blocks == 3
    add(scheduler, 3, 18, INTERACTIVE)
    assert step(scheduler) == {3: 18}
    assert scheduler.num_held_blocks < 3


def test_stalled_sequence_is_served_a_fraction_before_all_others():
    scheduler = make_scheduler(token_budget=8, num_blocks=200, max_sequences=64, max_waiting=64)
    add(scheduler, 999, 40)
    step(scheduler)
    for index in range(MAX_STALLED_STEPS):
        add(scheduler, index, 8, INTERACTIVE, ignore_eos=True)
        computed = step(scheduler)
        for sequence in scheduler.sequences():
            if sequence.priority is INTERACTIVE and sequence.num_output:
                scheduler.end(sequence)
        assert 999 not in computed
    add(scheduler, 500, 8, INTERACTIVE)
    assert step(scheduler) == {999: 1, 500: 7}


def test_batch_priority_may_fill_half_of_the_queue():
    scheduler = make_scheduler(max_waiting=3)
    for index in range(2):
        scheduler.check_room(BATCH)
        add(scheduler, index, 1, BATCH)
    with pytest.raises(ResourceExhausted):
        scheduler.check_room(BATCH, retry_after_s=2.5)
    scheduler.check_room(INTERACTIVE)


def test_outlook_leaves_out_what_is_cached_on_its_way_or_behind():
    scheduler = make_scheduler(token_budget=4, max_sequences=1)
    add(scheduler, 1, 0, tokens=range(3, 20), kv_root=ROOT)
    step(scheduler)
    add(scheduler, 2, 0, tokens=range(3, 18), kv_root=ROOT)
    add(scheduler, 3, 50, BATCH)
    wanted = replace(submission(4, range(3, 16), kv_root=ROOT), tenant="acme")
    found = scheduler.outlook(Sequence(wanted, 4), num_outputs=1)
    assert (found.own_tokens, found.own_steps) == (1, 1)
    assert found.ahead_tokens == 13 + 3  # what runs, and the last block of the one before it
