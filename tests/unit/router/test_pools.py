"""What a pool knows of its workers' loads, and which of them it picks for a prompt."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.router.placing import MAX_LEAD_TOKENS
from services.router.pools import Pool, SequenceStream, Submission, Worker, WorkerInfo


def info(num_running: int = 0, backlog_tokens: int = 0) -> WorkerInfo:
    return WorkerInfo("m@1", b"d", frozenset(), 4096, 10, num_running, 0, backlog_tokens)


@dataclass
class FakeWorker:
    address: str
    info: WorkerInfo | None = field(default_factory=info)
    num_active: int = 0
    unread_tokens: int = 0

    def submit(self, submission: Submission) -> SequenceStream:
        raise NotImplementedError


def pool(*workers: FakeWorker) -> Pool:
    made = Pool("llm")
    made.workers.update({worker.address: worker for worker in workers})
    return made


PROMPT = list(range(200))


def picked(pool: Pool, tokens: list[int], avoided: tuple[str, ...] = ()) -> Worker | None:
    pick = pool.pick(tokens, b"", "", avoided)
    return None if pick is None else pick.worker


def test_the_least_loaded_worker_is_picked() -> None:
    a, b, c = FakeWorker("a", num_active=2), FakeWorker("b", info(1)), FakeWorker("c")
    assert picked(pool(a, b, c), PROMPT) is c


def test_a_prompt_that_waits_to_be_read_counts_by_its_length() -> None:
    reads, answers = FakeWorker("a", num_active=1, unread_tokens=2000), FakeWorker("b", info(8))
    assert picked(pool(reads, answers), PROMPT) is answers
    told = FakeWorker("c", info(1, backlog_tokens=4000))
    assert picked(pool(told, FakeWorker("d", info(8))), PROMPT) is not told


def test_a_prefix_returns_to_its_worker_until_that_one_leads_by_far() -> None:
    a, b = FakeWorker("a"), FakeWorker("b", num_active=1)
    found = pool(a, b)
    first = found.pick(PROMPT, b"", "")
    assert first is not None and first.worker is a and first.unread_tokens == len(PROMPT)
    a.num_active, a.unread_tokens = 1, MAX_LEAD_TOKENS + 128
    second = found.pick([*PROMPT[:128], 9, 9], b"", "")
    assert second is not None and second.worker is a and second.unread_tokens == 2
    a.unread_tokens += 193
    third = found.pick(PROMPT, b"", "")
    assert third is not None and third.worker is b and third.unread_tokens == len(PROMPT)


def test_unreachable_and_avoided_workers_are_the_last_resort() -> None:
    a, b = FakeWorker("a"), FakeWorker("b", None)
    found = pool(a, b)
    assert picked(found, PROMPT) is a
    assert picked(found, PROMPT, ("a",)) is a
    a.info = None
    assert picked(found, PROMPT) is None
    assert not found.is_available
    assert found.info is not None, "the last state is remembered for costs"
