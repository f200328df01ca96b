"""Which worker takes a sequence: the one with its prefix, unless that one is far busier."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.pools import (
    MAX_IMBALANCE,
    Pool,
    PrefixMemory,
    SequenceStream,
    Submission,
    WorkerInfo,
    pick_address,
    prefix_hashes,
)


def info(num_running: int = 0) -> WorkerInfo:
    return WorkerInfo("m@1", b"d", frozenset(), 4096, 10, num_running, 0)


@dataclass
class FakeWorker:
    address: str
    info: WorkerInfo | None = field(default_factory=info)
    num_active: int = 0

    def submit(self, submission: Submission) -> SequenceStream:
        raise NotImplementedError


def pool(*workers: FakeWorker) -> Pool:
    made = Pool("llm")
    made.workers.update({worker.address: worker for worker in workers})
    return made


PROMPT = list(range(200))


def test_the_least_loaded_worker_is_picked() -> None:
    found = pool(FakeWorker("a", num_active=2), FakeWorker("b", info(1)), FakeWorker("c"))
    picked = found.pick(PROMPT, b"", "")
    assert picked is not None and picked.address == "c"


def test_a_prefix_returns_to_its_worker_until_that_one_leads_by_far() -> None:
    a, b = FakeWorker("a"), FakeWorker("b", num_active=1)
    found = pool(a, b)
    assert found.pick(PROMPT, b"", "") is a
    a.num_active = 1 + MAX_IMBALANCE
    assert found.pick([*PROMPT[:128], 9, 9], b"", "") is a
    a.num_active = 2 + MAX_IMBALANCE
    assert found.pick(PROMPT, b"", "") is b


def test_tenants_and_adapters_share_no_prefix() -> None:
    roots = [prefix_hashes(b"x", "", PROMPT), prefix_hashes(b"y", "", PROMPT)]
    adapted = prefix_hashes(b"x", "snips-tools", PROMPT)
    assert len(roots[0]) == 3
    assert not set(roots[0]) & set(roots[1])
    assert not set(roots[0]) & set(adapted)


def test_unreachable_and_avoided_workers_are_the_last_resort() -> None:
    a, b = FakeWorker("a"), FakeWorker("b", None)
    found = pool(a, b)
    assert found.pick(PROMPT, b"", "") is a
    assert found.pick(PROMPT, b"", "", avoided={"a"}) is a
    a.info = None
    assert found.pick(PROMPT, b"", "") is None
    assert not found.is_available
    assert found.info is not None, "the last state is remembered for costs"


def test_prefix_memory_is_bounded() -> None:
    memory = PrefixMemory(max_prefixes=2)
    memory.remember([b"1", b"2"], "a")
    memory.remember([b"3"], "b")
    assert memory.find([b"1"]) is None
    assert memory.find([b"2", b"3"]) == "b"


@settings(deadline=None)
@given(
    loads=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 30), min_size=1),
    preferred=st.sampled_from([*"abcdef", None]),
)
def test_a_pick_never_leads_the_least_loaded_by_more_than_the_allowance(
    loads: dict[str, int], preferred: str | None
) -> None:
    assert loads[pick_address(loads, preferred)] - min(loads.values()) <= MAX_IMBALANCE
