"""The scheduler: budget, order, prefix reuse, preemption; and that it always makes progress."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.attention.scheduler import Scheduler
from services.attention.sequence import Phase, Sequence
from tests.unit.attention.parts import ROOT, make_scheduler, next_token, submission
from understudy.errors import ResourceExhausted


def add(scheduler: Scheduler, sequence_id: int, num_tokens: int, **fields: object) -> Sequence:
    tokens = range(3, 3 + num_tokens)
    sequence = Sequence(submission(sequence_id, tokens, **fields), sequence_id)
    scheduler.add(sequence, is_loading=False)
    return sequence


def step(scheduler: Scheduler) -> list[tuple[int, int]]:
    """Run one step with the fake model; return (sequence id, tokens) of each chunk."""
    chunks = scheduler.schedule()
    for chunk in chunks:
        is_sampling = chunk.is_sampling
        scheduler.advance(chunk)
        if is_sampling:
            chunk.sequence.tokens.append(next_token(chunk.sequence.tokens))
    scheduler.check_integrity()
    return [(chunk.sequence.key.sequence_id, chunk.num_tokens) for chunk in chunks]


def test_decodes_come_first_and_prompt_chunks_fill_the_budget():
    scheduler = make_scheduler(token_budget=6)
    add(scheduler, 1, 3)
    assert step(scheduler) == [(1, 3)]
    add(scheduler, 2, 12)
    assert step(scheduler) == [(1, 1), (2, 5)]
    add(scheduler, 3, 2)
    assert step(scheduler) == [(1, 1), (2, 5)]
    assert step(scheduler) == [(1, 1), (2, 2), (3, 2)]
    assert step(scheduler) == [(1, 1), (2, 1), (3, 1)]


def test_chunk_samples_only_when_it_completes_the_prompt():
    scheduler = make_scheduler(token_budget=4)
    add(scheduler, 1, 6)
    (first,) = scheduler.schedule()
    assert not first.is_sampling
    scheduler.advance(first)
    (second,) = scheduler.schedule()
    assert second.is_sampling


def test_forced_tokens_are_computed_with_the_next_decode():
    scheduler = make_scheduler()
    sequence = add(scheduler, 1, 3)
    step(scheduler)
    sequence.tokens.extend([40, 41, 42])
    assert step(scheduler) == [(1, 4)]


def test_waiting_sequences_are_taken_in_order_of_arrival():
    scheduler = make_scheduler(num_blocks=4, block_size=4, token_budget=64)
    add(scheduler, 1, 8)
    add(scheduler, 2, 9)
    add(scheduler, 3, 1)
    assert step(scheduler) == [(1, 8)]
    assert scheduler.num_waiting == 2


def test_running_sequences_are_capped():
    scheduler = make_scheduler(max_sequences=2)
    for sequence_id in (1, 2, 3):
        add(scheduler, sequence_id, 1)
    assert step(scheduler) == [(1, 1), (2, 1)]


def test_shared_prefix_is_computed_once_and_counted():
    scheduler = make_scheduler()
    first = add(scheduler, 1, 9, kv_root=ROOT)
    step(scheduler)
    second = add(scheduler, 2, 10, kv_root=ROOT)
    assert step(scheduler) == [(1, 1), (2, 2)]
    assert second.blocks[:2] == first.blocks[:2]
    assert (second.local_cached_tokens, second.computed_positions) == (8, 2)


def test_last_prompt_token_is_always_computed():
    scheduler = make_scheduler()
    add(scheduler, 1, 8, kv_root=ROOT)
    step(scheduler)
    add(scheduler, 2, 8, kv_root=ROOT)
    assert step(scheduler) == [(1, 1), (2, 4)]


@pytest.mark.parametrize(
    "fields", [{"kv_root": b"s" * 32}, {"kv_root": ROOT, "adapter": "tools"}, {}]
)
def test_other_tenants_adapters_and_unshared_sequences_get_no_foreign_block(fields: dict):
    scheduler = make_scheduler()
    first = add(scheduler, 1, 9, kv_root=ROOT)
    step(scheduler)
    second = add(scheduler, 2, 9, **fields)
    step(scheduler)
    assert not set(first.blocks) & set(second.blocks)
    assert second.local_cached_tokens == 0


def test_youngest_gives_its_blocks_back_and_is_recomputed():
    scheduler = make_scheduler(num_blocks=5, block_size=4, token_budget=64)
    first = add(scheduler, 1, 8)
    second = add(scheduler, 2, 4)
    assert step(scheduler) == [(1, 8), (2, 4)]
    for _ in range(4):
        step(scheduler)
    # Both need a further block at the same time, one is left.
    assert [first.phase, second.phase] == [Phase.RUNNING, Phase.RUNNING]
    while second.phase is Phase.RUNNING:
        step(scheduler)
    assert [p.sequence for p in scheduler.take_preemptions()] == [second]
    assert second.blocks == []
    num_output = second.num_output
    scheduler.end(first)
    assert step(scheduler) == [(2, len(second.tokens) - 1)]
    assert second.num_output == num_output + 1
    assert second.computed_positions > len(second.tokens)


def test_end_frees_blocks_in_every_phase():
    scheduler = make_scheduler(max_sequences=1)
    running = add(scheduler, 1, 4)
    waiting = add(scheduler, 2, 4)
    loading = Sequence(submission(3), 3)
    scheduler.add(loading, is_loading=True)
    step(scheduler)
    for sequence in (running, waiting, loading):
        scheduler.end(sequence)
    assert scheduler.blocks.num_free == scheduler.blocks.num_blocks
    assert scheduler.sequences() == []
    scheduler.check_integrity()


def test_loading_sequence_waits_and_keeps_its_place():
    scheduler = make_scheduler(max_sequences=1)
    first = Sequence(submission(1), 1)
    scheduler.add(first, is_loading=True)
    assert scheduler.is_idle
    assert step(scheduler) == []
    scheduler.end_loading(first)
    add(scheduler, 2, 1)
    assert step(scheduler) == [(1, 3)]


def test_full_queue_is_refused_with_retry_delay():
    scheduler = make_scheduler(max_waiting=1)
    scheduler.check_room()
    add(scheduler, 1, 4)
    with pytest.raises(ResourceExhausted, match="16 blocks are free") as refusal:
        scheduler.check_room()
    assert refusal.value.retry_after_s > 0


def test_expired_sequences_are_named():
    scheduler = make_scheduler()
    add(scheduler, 1, 1, deadline_s=5.0)
    add(scheduler, 2, 1)
    assert scheduler.next_deadline_s() == 5.0
    assert [s.key.sequence_id for s in scheduler.expired(5.0)] == [1]
    assert scheduler.expired(4.9) == []


REQUESTS = st.lists(
    st.tuples(st.integers(1, 24), st.integers(1, 8), st.booleans()), min_size=1, max_size=10
)


@settings(max_examples=80, deadline=None)
@given(requests=REQUESTS, num_blocks=st.integers(8, 20), budget=st.integers(1, 20))
def test_every_sequence_ends_within_budget_with_the_tokens_of_an_undisturbed_run(
    requests: list[tuple[int, int, bool]], num_blocks: int, budget: int
):
    scheduler = make_scheduler(num_blocks, 4, token_budget=budget, max_sequences=4)
    sequences = {}
    for index, (num_prompt, max_tokens, is_shared) in enumerate(requests):
        root = ROOT if is_shared else b""
        sequences[index] = add(scheduler, index, num_prompt, kv_root=root, max_tokens=max_tokens)
    num_steps = 0
    while scheduler.sequences():
        computed = step(scheduler)
        assert computed
        assert sum(count for _, count in computed) <= budget
        for sequence in scheduler.sequences():
            if sequence.num_output >= sequence.submission.params.max_tokens:
                scheduler.end(sequence)
        num_steps += 1
        assert num_steps < 5_000
    for index, (num_prompt, max_tokens, _) in enumerate(requests):
        expected = list(range(3, 3 + num_prompt))
        for _ in range(max_tokens):
            expected.append(next_token(expected))
        assert sequences[index].tokens == expected
    assert scheduler.blocks.num_free == num_blocks
    assert math.isinf(sequences[0].submission.deadline_s)
