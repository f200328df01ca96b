"""The fake keeps the promises of a router that callers can see."""

import pytest

from understudy import Client, Decision, DecisionReason, NotFound, RetryPolicy, Unavailable
from understudy.client import Attempt, Usage, Verdict
from understudy.testing import FakeAnswer, FakeRouter

DECISION = Decision(
    pool="llm",
    reason=DecisionReason.LOW_CONFIDENCE,
    workload="snips",
    threshold=0.5,
    attempts=(
        Attempt("slm", "s@1", "", Usage(3, 4, 1), 2, 0.25, 7, 0.5, 0.1, (), "w1"),
        Attempt(
            pool="llm",
            model="l@1",
            adapter="snips-tools",
            usage=Usage(3, 4, 0),
            forced_tokens=2,
            confidence=None,
            computed_positions=7,
            cost=7.0,
            duration_s=0.5,
            verdicts=(Verdict("schema", False, "No slot."),),
            worker="w2",
        ),
    ),
    cost=7.5,
    cost_ratio=1.07,
    trace_id="ab" * 16,
    is_resumable=True,
)


def test_a_scripted_decision_arrives_unchanged() -> None:
    with FakeRouter(FakeAnswer(decision=DECISION)) as router, Client(router.address) as client:
        assert client.complete(prompt="Hi").decision == DECISION


def test_an_answer_may_depend_on_the_request_and_is_kept_under_its_key() -> None:
    asked: list[str] = []

    def answer(request) -> FakeAnswer:
        asked.append(request.prompt)
        return FakeAnswer(texts=(request.prompt.upper(),))

    with FakeRouter(answer) as router, Client(router.address) as client:
        assert client.complete(prompt="one", idempotency_key="k").text == "ONE"
        assert client.complete(prompt="two", idempotency_key="k").text == "ONE"
    assert asked == ["one"]


def test_a_forgotten_journal_ends_what_was_to_be_resumed() -> None:
    with FakeRouter() as router, Client(router.address) as client:
        router.break_next(after_deltas=2)
        with client.generate(prompt="Hi") as stream:
            for _ in range(3):
                next(stream)
            router.forget_journal()
            with pytest.raises(NotFound, match="token-"):
                next(stream)


def test_retries_can_be_turned_off() -> None:
    retries = RetryPolicy(max_attempts=1)
    with FakeRouter() as router, Client(router.address, retries=retries) as client:
        router.fail_next(Unavailable("draining"))
        with pytest.raises(Unavailable, match="draining"):
            client.complete(prompt="Hi")
