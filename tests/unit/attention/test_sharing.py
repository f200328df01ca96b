"""KV beyond the local blocks: what is asked for, what comes in, what is written back."""

from dataclasses import dataclass, field

import pytest

from services.attention.blocks import BlockManager
from services.attention.core import EngineCore
from services.attention.scheduler import Scheduler
from services.attention.sequence import Phase, Priority, Sequence, SequenceKey
from services.attention.sharing import Chain, ChainKeys, OnLoaded, Payloads, Sharing
from tests.unit.attention.parts import ROOT, FakeRunner, make_core, submission
from understudy.chunks import MAX_CHAIN_HASHES, Chunk, chain_hashes
from understudy.errors import FailedPrecondition

BLOCK_SIZE = 4
DIGESTS = {"": b"m" * 32, "tools": b"t" * 32}
PROMPT = tuple(range(3, 16))  # three full blocks and a rest


@dataclass
class FakeContents:
    """Block contents as bytes."""

    blocks: dict[int, bytes] = field(default_factory=dict)
    block_bytes: int = 8

    def export_block(self, block: int) -> bytes:
        return self.blocks.get(block, b"computed")

    def import_block(self, block: int, content: bytes | bytearray | memoryview) -> None:
        if len(content) != self.block_bytes:
            raise FailedPrecondition("wrong length")
        self.blocks[block] = bytes(content)


@dataclass
class FakeTier:
    """Remembers what was asked for and handed over."""

    loads: list[tuple[Chain, OnLoaded]] = field(default_factory=list)
    stored: list[Chunk] = field(default_factory=list)
    is_worth: bool = True
    is_open: bool = True
    room_blocks: int = 64
    absent: list[bytes] = field(default_factory=list)
    is_worth_a_swap: bool = True

    def is_worth_swapping(self, num_tokens: int, size_bytes: int) -> bool:
        return self.is_worth_a_swap and self.is_open

    def is_worth_loading(self, num_tokens: int, size_bytes: int) -> bool:
        return self.is_worth

    def load(self, chain: Chain, block_tokens: int, block_bytes: int, on_loaded: OnLoaded) -> None:
        self.loads.append((chain, on_loaded))

    def store(self, tenant: str, traceparent: str, chunks: list[Chunk]) -> None:
        self.stored.extend(chunks)

    def room_bytes(self) -> int:
        return 8 * self.room_blocks if self.is_open else 0

    def take_absent(self) -> list[bytes]:
        absent, self.absent = self.absent, []
        return absent

    def note_prefill(self, num_tokens: int, duration_s: float) -> None:
        pass


@dataclass
class Rig:
    """An engine core with a fake tier behind it."""

    tier: FakeTier
    contents: FakeContents
    runner: FakeRunner
    scheduler: Scheduler
    core: EngineCore
    loaded: list[tuple[SequenceKey, Payloads]]

    def hashes(self, tokens=PROMPT, adapter: str = "") -> list[bytes]:
        return chain_hashes(ROOT, DIGESTS[adapter], tokens, BLOCK_SIZE)

    def arrive(self, *payloads: bytes) -> None:
        """Let the last load end with these payloads."""
        _, on_loaded = self.tier.loads[-1]
        on_loaded([memoryview(payload) for payload in payloads])
        self.core.loaded(*self.loaded.pop())

    def run(self) -> None:
        while self.core.step():
            self.core.check_integrity()


def make_rig(num_blocks: int = 16, write_touches: int = 2, max_context: int = 64) -> Rig:
    blocks = BlockManager(num_blocks, BLOCK_SIZE)
    keys = ChainKeys(DIGESTS, BLOCK_SIZE)
    scheduler = Scheduler(
        blocks, token_budget=64, max_sequences=8, max_waiting=8, next_hash=keys.next_hash
    )
    tier, contents, runner = FakeTier(), FakeContents(), FakeRunner()
    sharing = Sharing(
        blocks=blocks,
        contents=contents,
        keys=keys,
        tier=tier,
        min_tokens=8,
        write_touches=write_touches,
    )
    loaded: list[tuple[SequenceKey, Payloads]] = []
    core = make_core(
        runner,
        scheduler,
        max_context=max_context,
        sharing=sharing,
        on_loaded=lambda key, payloads: loaded.append((key, payloads)),
    )
    return Rig(tier, contents, runner, scheduler, core, loaded)


@pytest.fixture
def rig() -> Rig:
    return make_rig()


def finished(rig: Rig):
    return rig.core.take_outputs()[1].finished[-1]


def test_missing_prefix_is_asked_for_and_what_comes_is_not_computed(rig: Rig):
    rig.core.submit(submission(1, PROMPT, max_tokens=1, kv_root=ROOT))
    assert not rig.core.step()
    (chain, _) = rig.tier.loads[0]
    assert chain.hashes == tuple(rig.hashes())
    assert (chain.tenant, chain.config_digest) == ("acme", DIGESTS[""])
    rig.arrive(b"payload0", b"payload1")
    rig.run()
    end = finished(rig)
    assert (end.remote_cached_tokens, end.local_cached_tokens) == (8, 0)
    assert end.computed_positions == len(PROMPT) - 8
    assert sorted(rig.contents.blocks.values()) == [b"payload0", b"payload1"]


def test_miss_is_recomputed(rig: Rig):
    rig.core.submit(submission(1, PROMPT, max_tokens=1, kv_root=ROOT))
    rig.arrive()
    rig.run()
    assert finished(rig).computed_positions == len(PROMPT)


def test_payload_of_the_wrong_length_ends_the_run_of_hits(rig: Rig):
    rig.core.submit(submission(1, PROMPT, max_tokens=1, kv_root=ROOT))
    rig.arrive(b"payload0", b"short", b"payload2")
    rig.run()
    assert finished(rig).remote_cached_tokens == 4


def test_only_what_local_blocks_lack_is_asked_for(rig: Rig):
    rig.core.submit(submission(1, PROMPT[:5], max_tokens=1, kv_root=ROOT))
    rig.run()
    assert rig.tier.loads == []  # four tokens are not worth a question
    rig.core.submit(submission(2, PROMPT, max_tokens=1, kv_root=ROOT))
    (chain, _) = rig.tier.loads[0]
    assert chain.hashes == tuple(rig.hashes()[1:])
    rig.arrive(b"payload1")
    rig.run()
    end = finished(rig)
    assert (end.local_cached_tokens, end.remote_cached_tokens) == (4, 4)


def test_prefix_with_more_blocks_than_a_chain_may_have_is_asked_for_from_its_head():
    rig = make_rig(num_blocks=MAX_CHAIN_HASHES + 8, max_context=MAX_CHAIN_HASHES * 5)
    prompt = [3 + index % 80 for index in range((MAX_CHAIN_HASHES + 2) * BLOCK_SIZE)]
    rig.core.submit(submission(1, prompt, max_tokens=1, kv_root=ROOT))
    (chain, _) = rig.tier.loads[0]
    assert chain.hashes == tuple(rig.hashes(prompt)[:MAX_CHAIN_HASHES])


def test_adapters_ask_for_different_chunks(rig: Rig):
    for sequence_id, adapter in ((1, ""), (2, "tools")):
        rig.core.submit(submission(sequence_id, PROMPT, kv_root=ROOT, adapter=adapter))
    (bare, _), (adapted, _) = rig.tier.loads
    assert not set(bare.hashes) & set(adapted.hashes)
    assert bare.config_digest != adapted.config_digest


def test_nothing_is_asked_for_when_it_is_not_worth_it_or_not_shared(rig: Rig):
    rig.core.submit(submission(1, PROMPT, max_tokens=1))
    rig.tier.is_worth = False
    rig.core.submit(submission(2, PROMPT, max_tokens=1, kv_root=ROOT))
    rig.run()
    assert rig.tier.loads == []


def test_kv_that_arrives_after_the_sequence_has_left_is_ignored(rig: Rig):
    rig.core.submit(submission(1, PROMPT, kv_root=ROOT))
    rig.core.cancel(SequenceKey(1, 1))
    rig.arrive(b"payload0")
    assert rig.contents.blocks == {}
    rig.core.check_integrity()


def test_loading_stops_when_no_block_is_free():
    rig = make_rig(num_blocks=4)
    rig.core.submit(submission(1, range(60, 69), max_tokens=9))
    rig.core.step()
    rig.core.submit(submission(2, PROMPT, max_tokens=1, kv_root=ROOT))
    rig.arrive(b"payload0", b"payload1", b"payload2")
    rig.core.check_integrity()
    assert list(rig.contents.blocks.values()) == [b"payload0"]


def serve(rig: Rig, sequence_id: int, tokens=PROMPT) -> None:
    rig.core.submit(submission(sequence_id, tokens, max_tokens=1, kv_root=ROOT))
    if rig.tier.loads:
        rig.arrive()
        rig.tier.loads.clear()
    rig.run()


def test_second_touch_is_written_once_tail_first(rig: Rig):
    serve(rig, 1)
    assert rig.tier.stored == []
    serve(rig, 2)
    assert [chunk.hash for chunk in rig.tier.stored] == rig.hashes()[::-1]
    assert rig.tier.stored[0].parent == rig.hashes()[1]
    assert rig.tier.stored[0].num_tokens == BLOCK_SIZE
    serve(rig, 3)
    assert len(rig.tier.stored) == 3


def test_output_blocks_are_written_when_the_sequence_ends():
    rig = make_rig(write_touches=1)
    rig.core.submit(submission(1, PROMPT, max_tokens=8, kv_root=ROOT))
    rig.arrive()
    rig.run()
    assert len(rig.tier.stored) == (len(PROMPT) + 7) // BLOCK_SIZE


def test_chunks_that_came_from_the_store_are_not_written_back(rig: Rig):
    rig.core.submit(submission(1, PROMPT, max_tokens=1, kv_root=ROOT))
    rig.arrive(b"payload0", b"payload1", b"payload2")
    rig.run()
    serve(rig, 2)
    assert rig.tier.stored == []


def test_chunks_there_was_no_room_for_are_written_at_a_later_touch():
    rig = make_rig(write_touches=1)
    rig.tier.is_open = False
    serve(rig, 1)
    assert rig.tier.stored == []
    rig.tier.is_open = True
    serve(rig, 2)
    assert [chunk.hash for chunk in rig.tier.stored] == rig.hashes()[::-1]


def test_prefix_above_the_room_is_written_head_first_touch_by_touch():
    rig = make_rig(write_touches=1)
    rig.tier.room_blocks = 2
    serve(rig, 1)
    assert [chunk.hash for chunk in rig.tier.stored] == rig.hashes()[1::-1]
    serve(rig, 2)
    assert [chunk.hash for chunk in rig.tier.stored[2:]] == rig.hashes()[2:]


def test_chunks_the_store_lacks_after_all_are_written_again_at_the_next_touch(rig: Rig):
    serve(rig, 1)
    serve(rig, 2)
    rig.tier.stored.clear()
    rig.tier.absent = [*rig.hashes()[1:], b"never seen"]
    serve(rig, 3)
    assert [chunk.hash for chunk in rig.tier.stored] == rig.hashes()[:0:-1]
    serve(rig, 4)
    assert len(rig.tier.stored) == 2


def preempt(rig: Rig, absent: tuple[bytes, ...] = ()) -> Sequence:
    """Let a second sequence grow until the first, of batch priority, has lost its blocks.

    What is `absent` could not be written when the first one's prompt was complete.
    """
    batch = submission(1, PROMPT, max_tokens=9, kv_root=ROOT, priority=Priority.BATCH)
    rig.core.submit(batch)
    rig.arrive()
    rig.core.step()
    rig.tier.absent.extend(absent)
    sequence = rig.scheduler.get(batch.key)
    assert sequence is not None
    urgent = submission(2, range(40, 55), max_tokens=8, priority=Priority.INTERACTIVE)
    rig.core.submit(urgent)
    rig.core.step()
    return sequence


def test_preempted_kv_is_written_out_and_fetched_before_it_is_computed_again():
    rig = make_rig(num_blocks=6)
    sequence = preempt(rig)
    assert sequence.phase is Phase.WAITING
    assert [chunk.hash for chunk in rig.tier.stored] == rig.hashes()[::-1]
    rig.tier.loads.clear()
    while sequence.phase is Phase.WAITING:
        rig.core.step()
    assert sequence.phase is Phase.LOADING
    (chain, _) = rig.tier.loads[0]
    assert set(chain.hashes) <= set(rig.hashes())
    num_local = 3 - len(chain.hashes)
    computed = sequence.computed_positions
    rig.arrive(*[b"payload"[:7] + bytes([i]) for i in range(len(chain.hashes))])
    rig.run()
    assert num_local < 3
    assert sequence.computed_positions < computed + len(PROMPT)
    outputs = rig.core.take_outputs()[1]
    assert {end.sequence_id for end in outputs.finished} == {1, 2}


def test_preempted_kv_is_recomputed_when_that_is_cheaper():
    rig = make_rig(num_blocks=6)
    rig.tier.is_worth_a_swap = False
    sequence = preempt(rig)
    assert sequence.num_swapped == 0
    assert rig.tier.stored == []
    rig.run()
    assert sequence.phase is Phase.ENDED


def test_what_the_store_has_already_is_not_swapped_out_again():
    rig = make_rig(num_blocks=6, write_touches=1)
    sequence = preempt(rig)
    assert sequence.num_swapped == 3
    assert len(rig.tier.stored) == 3  # written once, when its prompt was complete


def test_swapped_kv_whose_write_failed_is_written_when_it_is_swapped_again():
    rig = make_rig(num_blocks=6, write_touches=1)
    sequence = preempt(rig, absent=tuple(rig.hashes()[1:]))
    assert sequence.num_swapped == 3
    assert [chunk.hash for chunk in rig.tier.stored[3:]] == rig.hashes()[:0:-1]


def test_sequence_whose_swapped_kv_is_gone_is_recomputed():
    rig = make_rig(num_blocks=6)
    sequence = preempt(rig)
    rig.tier.loads.clear()
    while not rig.tier.loads:
        rig.core.step()
    rig.arrive()
    rig.run()
    assert sequence.phase is Phase.ENDED


def test_prefix_that_another_sequence_brings_is_not_fetched_twice(rig: Rig):
    rig.core.submit(submission(1, PROMPT, max_tokens=1, kv_root=ROOT))
    rig.core.submit(submission(2, PROMPT, max_tokens=1, kv_root=ROOT))
    assert len(rig.tier.loads) == 1
    assert not rig.core.step()
    rig.arrive(b"payload0", b"payload1", b"payload2")
    rig.run()
    assert [end.computed_positions for end in rig.core.take_outputs()[1].finished] == [1, 1]
