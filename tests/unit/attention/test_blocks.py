"""The block manager: references, sealed prefixes, eviction order, integrity under any history."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.attention.blocks import BlockManager


def chain(*names: str) -> list[bytes]:
    return [name.encode() for name in names]


def test_allocation_is_all_or_nothing():
    blocks = BlockManager(4, 16)
    assert blocks.allocate(5) is None
    assert blocks.num_free == 4
    granted = blocks.allocate(4)
    assert granted is not None
    assert sorted(granted) == [0, 1, 2, 3]
    assert blocks.num_free == 0


def test_block_count_rounds_up():
    blocks = BlockManager(4, 16)
    assert [blocks.blocks_for(count) for count in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_match_ends_at_the_first_gap():
    blocks = BlockManager(4, 16)
    table = blocks.allocate(3)
    assert table is not None
    blocks.seal(table[0], b"a")
    blocks.seal(table[2], b"c")
    assert blocks.match(chain("a", "b", "c")) == table[:1]


def test_released_prefix_is_found_again_until_its_memory_is_needed():
    blocks = BlockManager(2, 16)
    table = blocks.allocate(2)
    assert table is not None
    for block, name in zip(table, chain("a", "b"), strict=True):
        blocks.seal(block, name)
    blocks.release(table)
    assert blocks.num_free == 2
    assert blocks.match(chain("a", "b")) == table
    blocks.acquire(table)
    assert blocks.num_free == 0
    blocks.release(table)
    assert blocks.allocate(2) is not None
    assert blocks.match(chain("a", "b")) == []


def test_blank_blocks_go_first_then_the_tail_of_a_prefix_before_its_head():
    blocks = BlockManager(3, 16)
    table = blocks.allocate(2)
    assert table is not None
    for block, name in zip(table, chain("head", "tail"), strict=True):
        blocks.seal(block, name)
    blocks.release(table)
    assert blocks.allocate(1) == [2]
    assert blocks.match(chain("head", "tail")) == table
    assert blocks.allocate(1) == [table[1]]
    assert blocks.match(chain("head", "tail")) == table[:1]


def test_second_block_of_a_hash_stays_blank():
    blocks = BlockManager(2, 16)
    first, second = blocks.allocate(1), blocks.allocate(1)
    assert first is not None
    assert second is not None
    blocks.seal(first[0], b"a")
    blocks.seal(second[0], b"a")
    assert blocks.match([b"a"]) == first
    blocks.release(second)
    blocks.check_integrity([first])


def test_double_release_is_caught():
    blocks = BlockManager(2, 16)
    table = blocks.allocate(1)
    assert table is not None
    blocks.release(table)
    with pytest.raises(AssertionError, match="released twice"):
        blocks.release(table)


def test_forgotten_table_is_caught():
    blocks = BlockManager(2, 16)
    blocks.allocate(1)
    with pytest.raises(AssertionError, match="References differ"):
        blocks.check_integrity([])


class BlockHistory(RuleBasedStateMachine):
    """Tables come, share prefixes, grow, are sealed and go, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(6, 1)
        self.tables: list[tuple[list[int], list[bytes]]] = []

    @rule(name=st.sampled_from(["aaa", "aab", "abc", "b"]))
    def begin(self, name: str) -> None:
        hashes = [name[: end + 1].encode() for end in range(len(name))]
        matched = self.blocks.match(hashes)
        needed = len(name) - len(matched)
        if needed + self.blocks.num_idle(matched) > self.blocks.num_free:
            return
        self.blocks.acquire(matched)
        granted = self.blocks.allocate(needed)
        assert granted is not None
        self.tables.append(([*matched, *granted], hashes))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def seal(self, data: st.DataObject) -> None:
        table, hashes = data.draw(st.sampled_from(self.tables))
        for block, name in zip(table, hashes, strict=True):
            self.blocks.seal(block, name)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        table, _ = self.tables.pop(index)
        self.blocks.release(table)

    @invariant()
    def integrity_holds(self) -> None:
        self.blocks.check_integrity(table for table, _ in self.tables)


TestBlockHistory = BlockHistory.TestCase
TestBlockHistory.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
