"""What the router needs of one external engine, as plain data and a protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from services.router.answers import Usage
from understudy.errors import FailedPrecondition, InvalidArgument, Unavailable

Path = Literal["chat/completions", "completions"]
State = Literal["available", "resting", "away"]


class EngineRefused(InvalidArgument):
    """The engine refused the request itself (400, 413, 422)."""


class EngineUnreached(Unavailable):
    """No connection to the engine could be made, so that it never saw the request."""


class EngineMisfit(FailedPrecondition):
    """The engine refuses this router: a wrong key, an unknown model, another API."""


@dataclass(frozen=True, slots=True)
class Question:
    """One attempt as an engine is asked for it."""

    path: Path
    body: Mapping[str, object]
    traceparent: str


@dataclass(frozen=True, slots=True)
class CallPart:
    """A piece of a tool call; name and arguments come in any number of pieces."""

    index: int
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """What an engine said of one token; `margin` None where it named fewer than two candidates."""

    logprob: float
    margin: float | None


@dataclass(frozen=True, slots=True)
class Heard:
    """One event of an engine's stream."""

    text: str = ""
    calls: tuple[CallPart, ...] = ()
    tokens: tuple[TokenFacts, ...] = ()
    finish: str = ""
    """Why the engine finished, in its own word; empty while it goes on."""
    usage: Usage | None = None
    is_refusal: bool = False
    """Whether the text is the model's refusal to answer."""


class Endpoint(Protocol):
    """One URL of an external pool."""

    @property
    def address(self) -> str:
        """The URL, as it is told to callers and operators."""

    @property
    def state(self) -> State:
        """Whether it takes requests, rests after failures, or cannot be reached."""

    @property
    def busy_s(self) -> float:
        """Seconds for which the engine asked to be left alone; 0 when it takes requests."""

    @property
    def num_active(self) -> int:
        """Requests of this router on it."""

    @property
    def max_context_tokens(self) -> int:
        """What the engine said of its context; 0 where it said nothing."""

    def ask(self, question: Question, *, is_again: bool = False) -> AsyncGenerator[Heard, None]:
        """Ask once; the package's docstring says what holds.

        `is_again`: the same request failed here before, so another failure says nothing new of
        the engine.
        """
