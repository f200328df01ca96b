"""Which worker takes a prompt: the one that has least to read, unless another knows it already."""

from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.placing import (
    MAX_LEAD_TOKENS,
    PREFIX_STRIDE,
    SEQUENCE_TOKENS,
    PrefixMemory,
    load_tokens,
    pick_address,
    prefix_hashes,
)

PROMPT = list(range(200))


def test_tenants_and_adapters_share_no_prefix() -> None:
    roots = [prefix_hashes(b"x", "", PROMPT), prefix_hashes(b"y", "", PROMPT)]
    adapted = prefix_hashes(b"x", "snips-tools", PROMPT)
    assert len(roots[0]) == 3
    assert not set(roots[0]) & set(roots[1])
    assert not set(roots[0]) & set(adapted)


def test_prefix_memory_is_bounded() -> None:
    memory = PrefixMemory(max_prefixes=2)
    memory.remember([b"1", b"2"], "a")
    memory.remember([b"3"], "b")
    assert memory.find([b"1"]) is None
    assert memory.find([b"2", b"3"]) == ("b", 2 * PREFIX_STRIDE)
    assert memory.find([b"2", b"4"]) == ("a", PREFIX_STRIDE)


def test_one_long_prompt_weighs_more_than_several_short_ones() -> None:
    loads = {"long": load_tokens(1, 4000), "short": load_tokens(8, 8 * 100)}
    assert pick_address(loads, None) == "short"


def test_what_need_not_be_read_again_is_worth_as_long_a_queue() -> None:
    loads = {"knows": MAX_LEAD_TOKENS + 1000, "idle": 0}
    assert pick_address(loads, ("knows", 1000)) == "knows"
    assert pick_address(loads, ("knows", 999)) == "idle"


def test_a_worker_that_is_gone_is_not_preferred() -> None:
    assert pick_address({"a": SEQUENCE_TOKENS, "b": 0}, ("gone", 10_000)) == "b"


@settings(deadline=None)
@given(
    loads=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 10_000), min_size=1),
    preferred=st.sampled_from("abcdef"),
    num_shared=st.integers(0, 4000),
)
def test_a_pick_never_leads_the_least_loaded_by_more_than_the_allowance(
    loads: dict[str, int], preferred: str, num_shared: int
) -> None:
    lead = loads[pick_address(loads, (preferred, num_shared))] - min(loads.values())
    assert lead <= MAX_LEAD_TOKENS + num_shared
    assert loads[pick_address(loads, None)] == min(loads.values())
