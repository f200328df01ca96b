"""What holds for any arrivals: the budget, the blocks, everyone's turn, and the output itself."""

from collections.abc import Sequence as Items
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from services.attention.scheduler import Scheduler
from services.attention.sequence import Phase, Priority, Sequence
from tests.unit.attention.parts import ROOT, make_scheduler, next_token, submission

BLOCK_SIZE = 4
MAX_STEPS = 3_000
PREFIXES = ((), tuple(range(3, 12)), tuple(range(3, 16)), tuple(range(60, 72)))


@dataclass(frozen=True)
class Arrival:
    """A sequence that comes before step `step` and is cancelled before step `cancelled`, if so."""

    step: int
    prefix: int
    num_tokens: int
    max_tokens: int
    priority: Priority
    tenant: str
    is_shared: bool
    cancelled: int | None
    loads_until: int | None


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        step=st.integers(0, 12),
        prefix=st.integers(0, len(PREFIXES) - 1),
        num_tokens=st.integers(1, 14),
        max_tokens=st.integers(1, 8),
        priority=st.sampled_from(Priority),
        tenant=st.sampled_from(["a", "b"]),
        is_shared=st.booleans(),
        cancelled=st.none() | st.integers(0, 20),
        loads_until=st.none() | st.integers(0, 20),
    ),
    min_size=1,
    max_size=14,
)


def prompt(index: int, arrival: Arrival) -> tuple[int, ...]:
    own = range(1000 * (index + 1), 1000 * (index + 1) + arrival.num_tokens)
    return (*PREFIXES[arrival.prefix], *own)


def begin(scheduler: Scheduler, index: int, arrival: Arrival) -> Sequence:
    wanted = submission(
        index,
        prompt(index, arrival),
        max_tokens=arrival.max_tokens,
        kv_root=ROOT if arrival.is_shared else b"",
        priority=arrival.priority,
        tenant=arrival.tenant,
    )
    sequence = Sequence(wanted, index)
    scheduler.add(sequence, is_loading=arrival.loads_until is not None)
    return sequence


def compute(scheduler: Scheduler, budget: int, *, is_checked: bool = True) -> int:
    """Run one step, check what holds after each, and end who is done; return its tokens."""
    chunks = scheduler.schedule()
    if is_checked:
        scheduler.check_integrity()
    num_tokens = sum(chunk.num_tokens for chunk in chunks)
    assert num_tokens <= budget
    assert len({chunk.sequence.key for chunk in chunks}) == len(chunks)
    for chunk in chunks:
        sequence = chunk.sequence
        end = sequence.num_computed + chunk.num_tokens
        assert 1 <= chunk.num_tokens <= sequence.num_pending
        assert len(sequence.blocks) * BLOCK_SIZE >= end
        is_sampling = chunk.is_sampling
        scheduler.advance(chunk)
        if is_sampling:
            sequence.tokens.append(next_token(sequence.tokens))
            if sequence.num_output >= sequence.submission.params.max_tokens:
                scheduler.end(sequence)
    for preemption in scheduler.take_preemptions():
        assert len(preemption.blocks) >= preemption.num_sealed
    return num_tokens


def expected(tokens: Items[int], count: int) -> list[int]:
    output = list(tokens)
    for _ in range(count):
        output.append(next_token(output))
    return output


@settings(max_examples=80)
@given(
    arrivals=ARRIVALS,
    num_blocks=st.integers(9, 24),
    budget=st.integers(1, 24),
    max_sequences=st.integers(1, 6),
)
def test_any_arrivals_end_within_budget_with_the_output_of_an_undisturbed_run(
    arrivals: list[Arrival], num_blocks: int, budget: int, max_sequences: int
):
    scheduler = make_scheduler(
        num_blocks, BLOCK_SIZE, token_budget=budget, max_sequences=max_sequences
    )
    sequences: dict[int, Sequence] = {}
    for step in range(MAX_STEPS):
        for index, arrival in enumerate(arrivals):
            if arrival.step == step:
                sequences[index] = begin(scheduler, index, arrival)
            sequence = sequences.get(index)
            if sequence is None or sequence.phase is Phase.ENDED:
                continue
            if arrival.cancelled is not None and arrival.cancelled <= step:
                scheduler.end(sequence)
                assert sequence.blocks == []
            elif arrival.loads_until is not None and arrival.loads_until <= step:
                scheduler.end_loading(sequence)
        compute(scheduler, budget)
        if step > 20 and not scheduler.sequences():
            break
    assert scheduler.sequences() == []
    assert scheduler.blocks.num_free == num_blocks
    for index, arrival in enumerate(arrivals):
        if arrival.cancelled is None:
            output = expected(prompt(index, arrival), arrival.max_tokens)
            assert sequences[index].tokens == output


@settings(max_examples=60)
@given(budget=st.integers(1, 40), lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_prompt_chunks_fill_the_budget_exactly(budget: int, lengths: list[int]):
    scheduler = make_scheduler(200, BLOCK_SIZE, token_budget=budget, max_sequences=8)
    for index, length in enumerate(lengths):
        wanted = submission(index, range(1000 * index, 1000 * index + length), max_tokens=1)
        scheduler.add(Sequence(wanted, index), is_loading=False)
    num_left = sum(lengths)
    while num_left:
        num_tokens = compute(scheduler, budget)
        assert num_tokens == min(budget, num_left)
        num_left -= num_tokens


@settings(max_examples=12)
@given(
    priority=st.sampled_from([Priority.STANDARD, Priority.BATCH]),
    stream=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    num_blocks=st.integers(9, 16),
    budget=st.integers(4, 16),
    is_other_tenant=st.booleans(),
)
def test_nobody_starves_under_an_endless_stream_of_more_urgent_sequences(
    priority: Priority, stream: list[int], num_blocks: int, budget: int, is_other_tenant: bool
):
    scheduler = make_scheduler(
        num_blocks, BLOCK_SIZE, token_budget=budget, max_sequences=3, max_waiting=4
    )
    patient = Sequence(submission(0, range(3, 20), max_tokens=6, priority=priority, tenant="a"), 0)
    scheduler.add(patient, is_loading=False)
    for arrival in range(1, MAX_STEPS):
        if patient.phase is Phase.ENDED:
            break
        if scheduler.num_waiting < 4:
            length = stream[arrival % len(stream)]
            wanted = submission(
                arrival,
                range(1000, 1000 + length),
                max_tokens=1 + arrival % 3,
                priority=Priority.INTERACTIVE,
                tenant=f"t{arrival}" if is_other_tenant else "a",
            )
            scheduler.add(Sequence(wanted, arrival), is_loading=False)
        compute(scheduler, budget, is_checked=arrival % 50 == 0)
    assert patient.phase is Phase.ENDED


@settings(max_examples=40)
@given(lengths=st.lists(st.integers(1, 12), min_size=6, max_size=30))
def test_tenants_that_always_want_more_are_served_alike(lengths: list[int]):
    scheduler = make_scheduler(64, BLOCK_SIZE, token_budget=16, max_sequences=2, max_waiting=64)
    served = {"a": 0, "b": 0}
    sequences = []
    for index, length in enumerate(lengths):
        for offset, tenant in enumerate("ab"):
            sequence_id = 2 * index + offset
            # Tenant b asks for more each time; that must not get it a larger share.
            wanted = submission(
                sequence_id, range(1000, 1000 + length * (1 + offset)), max_tokens=1, tenant=tenant
            )
            sequences.append(Sequence(wanted, sequence_id))
            scheduler.add(sequences[-1], is_loading=False)
    most = max(lengths) * 2
    while {s.tenant for s in scheduler.sequences() if s.phase is Phase.WAITING} == {"a", "b"}:
        compute(scheduler, 16)
        served = {
            tenant: sum(
                s.submission.num_prompt_tokens
                for s in sequences
                if s.tenant == tenant and s.is_admitted_once
            )
            for tenant in "ab"
        }
        assert abs(served["a"] - served["b"]) <= 2 * most
