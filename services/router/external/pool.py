"""A pool of external endpoints: what it says of its model, and which endpoint is asked next."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from services.router.external.asking import Asking
from services.router.external.breaker import Breaker
from services.router.external.port import Endpoint
from services.router.pools import WorkerInfo

PROVIDER: Final = "openai"
"""What the GenAI conventions call an engine of which only its OpenAI form is known."""


@dataclass(frozen=True, slots=True)
class ExternalModel:
    """What settings say of a pool's model; nobody else can."""

    name: str
    position_parameters: int
    max_context_tokens: int
    """0: what the engine says, if it says so."""
    wants_logprobs: bool


class ExternalPool:
    """A model and the endpoints that serve it."""

    provider: Final = PROVIDER
    evidence: Final[Literal["native", "openai"]] = "openai"

    def __init__(
        self,
        name: str,
        model: ExternalModel,
        endpoints: Sequence[Endpoint],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._margins = Breaker(clock_s)
        self.asking = Asking(model.name, model.wants_logprobs)
        self._model = model
        self._endpoints = tuple(endpoints)

    @property
    def gives_margins(self) -> bool:
        """Whether attempts may bring what a calibrator needs.

        An SLM that is asked for nothing costs twice: after three answers in a row without margins
        it is let alone, as an endpoint that fails is.
        """
        return self._model.wants_logprobs and not self._margins.is_resting

    def note_margins(self, *, has_all: bool) -> None:
        """Learn whether an answer had a margin for each of its tokens."""
        if has_all:
            self._margins.succeed()
        else:
            self._margins.fail()

    @property
    def info(self) -> WorkerInfo:
        """What is known of the model, whether an endpoint can be reached or not."""
        said = [e.max_context_tokens for e in self._endpoints if e.max_context_tokens]
        return WorkerInfo(
            model=self._model.name,
            digest=b"",
            adapters=frozenset(),
            max_context_tokens=self._model.max_context_tokens or min(said, default=0),
            position_parameters=self._model.position_parameters,
            num_running=sum(endpoint.num_active for endpoint in self._endpoints),
            num_waiting=0,
        )

    @property
    def is_available(self) -> bool:
        """Whether an endpoint can be asked."""
        return any(endpoint.state == "available" for endpoint in self._endpoints)

    def pick(self, avoided: Collection[str] = (), spent: Collection[str] = ()) -> Endpoint | None:
        """Return the endpoint with the fewest requests of this router, or None.

        `avoided` names endpoints that lately failed this request; one that asked to be left alone
        is the last resort, after them. Those that are `spent` are not asked again.
        """
        ready = [e for e in self._endpoints if e.state == "available" and e.address not in spent]
        return min(
            ready,
            key=lambda e: (e.busy_s > 0, e.address in avoided, e.num_active, e.address),
            default=None,
        )
