"""Which endpoint is asked, and what a pool says of a model that nobody else can describe."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from services.router.external.pool import ExternalModel, ExternalPool
from services.router.external.port import Heard, Question, State

MODEL = ExternalModel("m", 1000, 0, wants_logprobs=False)


@dataclass
class Stub:
    address: str
    state: State = "available"
    busy_s: float = 0.0
    num_active: int = 0
    max_context_tokens: int = 0

    def ask(self, question: Question, *, is_again: bool = False) -> AsyncGenerator[Heard, None]:
        raise AssertionError(question, is_again)


def picked(*stubs: Stub, avoided: tuple[str, ...] = ()) -> str | None:
    endpoint = ExternalPool("llm", MODEL, stubs).pick(avoided)
    return endpoint.address if endpoint else None


def test_the_least_loaded_endpoint_is_asked() -> None:
    assert picked(Stub("a", num_active=2), Stub("b", num_active=1), Stub("c", num_active=1)) == "b"


def test_those_that_failed_and_then_those_that_want_to_be_left_alone_come_last() -> None:
    busy, free, third = Stub("a", busy_s=3.0), Stub("b", num_active=9), Stub("c", num_active=10)
    assert picked(busy, free) == "b"
    assert picked(busy, free, third, avoided=("b",)) == "c"
    assert picked(busy, free, avoided=("b",)) == "b", "it has room, whatever it did"
    assert picked(busy, avoided=("a",)) == "a"


def test_what_was_tried_often_enough_is_not_asked_again() -> None:
    pool = ExternalPool("llm", MODEL, [Stub("a"), Stub("b", busy_s=3.0)])
    picked_next = pool.pick((), {"a"})
    assert picked_next is not None
    assert picked_next.address == "b"
    assert pool.pick((), {"a", "b"}) is None


def test_an_endpoint_that_rests_or_is_away_is_not_asked() -> None:
    resting, away = Stub("a", state="resting"), Stub("b", state="away")
    assert picked(resting, away) is None
    assert not ExternalPool("llm", MODEL, [resting, away]).is_available
    assert picked(resting, Stub("c")) == "c"


def test_a_pool_describes_its_model_even_while_nothing_can_be_reached() -> None:
    stubs = [Stub("a", "away"), Stub("b", max_context_tokens=64), Stub("c", max_context_tokens=32)]
    info = ExternalPool("llm", MODEL, stubs).info
    assert (info.model, info.position_parameters, info.max_context_tokens) == ("m", 1000, 32)
    told = ExternalPool("llm", ExternalModel("m", 1000, 8, wants_logprobs=True), stubs)
    assert told.info.max_context_tokens == 8
    assert told.gives_margins
