"""Prefix groups: which order shares most, and what is held until its group is done."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.attention.blocks import BlockManager
from services.attention.grouping import HeldBlocks, PrefixDemand, group_key


def order(chains: dict[str, str]) -> list[str]:
    """Names in group order; a chain is a text whose every prefix is a block's name."""
    hashes = {n: [c[: i + 1].encode() for i in range(len(c))] for n, c in chains.items()}
    counts = Counter(h for chain in hashes.values() for h in chain)
    return sorted(chains, key=lambda name: (group_key(hashes[name], counts.__getitem__), name))


def test_largest_sharing_goes_first_and_the_unshared_last():
    chains = {"1": "ab", "2": "xyz1", "3": "q", "4": "xyz2", "5": "ac"}
    assert order(chains) == ["2", "4", "1", "5", "3"]


def test_groups_within_a_group_stay_together():
    chains = {"1": "sysAA1", "2": "sysB1", "3": "sysAA2", "4": "sysB2", "5": "sys"}
    assert order(chains) == ["1", "3", "2", "4", "5"]


def test_keys_of_unshared_chains_are_equal():
    assert group_key([b"a", b"b"], lambda _: 1) == group_key([], lambda _: 1)


CHAINS = st.lists(st.text("ab", max_size=6), min_size=1, max_size=12)


@given(chains=CHAINS)
def test_every_shared_prefix_is_needed_in_one_run(chains: list[str]):
    named = {str(index).zfill(2): chain for index, chain in enumerate(chains)}
    ordered = [named[name] for name in order(named)]
    for prefix in {chain[:end] for chain in chains for end in range(1, len(chain) + 1)}:
        places = [index for index, chain in enumerate(ordered) if chain.startswith(prefix)]
        assert places == list(range(places[0], places[-1] + 1))


def test_demand_names_what_nobody_needs_any_more():
    demand = PrefixDemand()
    demand.add([b"a", b"b"])
    demand.add([b"a", b"c"])
    assert demand.count(b"a") == 2
    assert demand.remove([b"a", b"b"]) == [b"b"]
    assert demand.remove([b"a", b"c"]) == [b"a", b"c"]
    assert len(demand) == 0


def held_blocks(num_sealed: int) -> tuple[BlockManager, HeldBlocks]:
    blocks = BlockManager(6, 4)
    granted = blocks.allocate(num_sealed)
    assert granted is not None
    for index, block in enumerate(granted):
        blocks.seal(block, bytes([index]))
    held = HeldBlocks(blocks)
    for index in range(num_sealed):
        held.hold(bytes([index]))
    blocks.release(granted)
    return blocks, held


def test_held_blocks_are_not_free_and_are_held_once():
    blocks, held = held_blocks(2)
    held.hold(b"\0")
    assert (blocks.num_free, len(held)) == (4, 2)
    held.release([b"\0", b"\1", b"unknown"])
    assert (blocks.num_free, len(held)) == (6, 0)
    blocks.check_integrity([held.table])


def test_giving_back_takes_tails_first_and_spares_what_would_not_become_free():
    blocks, held = held_blocks(3)
    (used,) = blocks.match([b"\2"])
    blocks.acquire([used])
    assert held.give_back(1)
    assert blocks.match([b"\0"])[0] in held.table
    assert used in held.table
    assert blocks.num_free == 4
    assert not held.give_back(9, kept=held.table)
    blocks.check_integrity([held.table, [used]])
