"""The cast: the pools of this router and the version that is on stage in the SLM pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.router.external.pool import ExternalPool
from services.router.plans import Plan
from services.router.policy import AUTO, LLM, SLM
from services.router.pools import Pool
from understudy.errors import NotFound
from understudy.evidence import Calibrator
from understudy.registry import Version


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A name a caller may use."""

    id: str
    version: str
    max_context_tokens: int
    cost_per_position: float


@dataclass(frozen=True, slots=True)
class Stage:
    """Pools by name, and the SLM's version with its calibrators."""

    pools: Mapping[str, Pool | ExternalPool]
    version: Version | None
    """None: the SLM has no calibrated version, so it answers only when asked for by name."""

    @property
    def llm(self) -> Pool | ExternalPool:
        """The pool that answers when the SLM does not."""
        return self.pools[LLM]

    @property
    def is_slm_available(self) -> bool:
        """Whether an SLM worker can be reached."""
        return SLM in self.pools and self.pools[SLM].is_available

    def check_model(self, name: str) -> str:
        """Return the model a request names ("auto" when empty); NotFound lists the known ones."""
        name = name or AUTO
        if name != AUTO and name not in self.pools:
            known = ", ".join([AUTO, *self.pools])
            raise NotFound(f"There is no model {name!r}; known are: {known}.", {"field": "model"})
        return name

    def calibrator(self, plan: Plan) -> Calibrator | None:
        """Return the calibrator for a plan, if the SLM runs the version it belongs to.

        And gives the evidence it was measured on: engines do not tell forced tokens, so that the
        same answers have other margins there.
        """
        if self.version is None or plan.workload is None or SLM not in self.pools:
            return None
        pool = self.pools[SLM]
        if not pool.gives_margins or pool.evidence != self.version.evidence:
            return None
        info = pool.info
        if info is not None and info.model != self.version.id:
            return None
        return self.version.calibrator(plan.workload.name, plan.output_type)

    def can_continue(self, pool: str) -> bool:
        """Whether an answer of which a part was shown can be continued in a pool."""
        return not isinstance(self.pools[pool], ExternalPool)

    def position_parameters(self, pool: str) -> tuple[int, int]:
        """Return (parameters of a position in this pool, parameters of one in the LLM).

        While no LLM worker was ever seen, costs are in units of the pool's own positions.
        """
        own, llm = self.pools[pool].info, self.llm.info
        own_parameters = own.position_parameters if own else 1
        return own_parameters, llm.position_parameters if llm else own_parameters

    def cards(self) -> list[ModelCard]:
        """List the models, "auto" first."""
        cards = []
        for name, pool in self.pools.items():
            own, llm = self.position_parameters(name)
            info = pool.info
            version = info.model if info else ""
            context = info.max_context_tokens if info else 0
            cards.append(ModelCard(name, version, context, own / llm))
        context = next((card.max_context_tokens for card in cards if card.id == LLM), 0)
        return [ModelCard(AUTO, "", context, 1.0), *cards]
