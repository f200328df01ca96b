"""Who computes the sums of an expert worker: this process, or a Triton server with the same shards.

Triton may be away at any time. What it does not answer in its share of the frame's deadline is
computed here, or left to a replica, as the settings say; from then on nothing is sent to it until
the canary says that it is back.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

from torch import Tensor

from services.experts.holdings import Holdings
from services.experts.metrics import ExpertsMetrics
from understudy.errors import Unavailable, UnderstudyError
from understudy.exchange.frame import Header
from understudy.exchange.tensors import Request
from understudy.serving import HealthState

Place = Literal["in_process", "triton"]
DEADLINE_SHARE: Final = 0.5
"""Of the time left, what Triton may use; the rest is for computing it again elsewhere."""
log = logging.getLogger(__name__)


class Computed(NamedTuple):
    """A sum (T, D) and where it was computed."""

    total: Tensor
    place: Place


class Executor(Protocol):
    """Computes what frames ask for."""

    def compute(self, header: Header, request: Request, remaining_s: float) -> Computed:
        """Return the sum over the request's shards.

        Raises InvalidArgument for a request that does not fit, Unavailable where another worker
        should compute it.
        """
        ...


class Backend(Protocol):
    """A server that holds the same shards."""

    def compute(
        self, header: Header, request: Request, *, timeout_s: float, traceparent: str
    ) -> Tensor:
        """Return the sum (T, D). Raises UnderstudyError, within the timeout."""
        ...


class InProcess:
    """Computes with the weights of this process."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings

    def compute(self, header: Header, request: Request, remaining_s: float) -> Computed:  # noqa: ARG002
        """Return the sum over the request's shards."""
        return Computed(self._holdings.compute(header, request), "in_process")


class Availability:
    """Whether Triton is used now; told by the canary and by calls that fail, from any thread."""

    def __init__(self, metrics: ExpertsMetrics, health: HealthState | None) -> None:
        """Also set the worker's `health` where there is nothing to fall back to here."""
        self._metrics, self._health = metrics, health
        self._lock = threading.Lock()
        self._listener: Callable[[], None] = lambda: None
        self._is_up: bool | None = None
        self.mark_down("Triton was not asked yet.")

    @property
    def is_up(self) -> bool:
        """Whether Triton is used."""
        return self._is_up is True

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` when Triton goes, on the thread that noticed."""
        self._listener = listener

    def mark_up(self) -> None:
        """Use Triton from now on."""
        if self._change(is_up=True):
            log.info("Triton computes the feed-forwards.")
            if self._health is not None:
                self._health.mark_ready()

    def mark_down(self, reason: str) -> None:
        """Do without Triton from now on."""
        was_known = self._is_up is not None
        if self._change(is_up=False):
            if was_known:
                log.warning("Triton is not used until its canary answers: %s", reason)
            if self._health is not None:
                self._health.mark_unready(reason)
            self._listener()

    def _change(self, *, is_up: bool) -> bool:
        with self._lock:
            is_news, self._is_up = is_up != self._is_up, is_up
        self._metrics.triton_up.set(is_up)
        return is_news


@dataclass(frozen=True, slots=True)
class TritonLimits:
    """When Triton is asked, and for how long."""

    timeout_s: float
    """Longest wait for one answer."""
    min_tokens: int
    """Fewer token rows than these are computed here."""


class TritonExecutor:
    """Lets Triton compute; `fallback` computes what it does not, None leaves that to replicas."""

    def __init__(
        self,
        backend: Backend,
        fallback: InProcess | None,
        availability: Availability,
        limits: TritonLimits,
        metrics: ExpertsMetrics,
    ) -> None:
        self._backend, self._fallback = backend, fallback
        self._availability, self._limits, self._metrics = availability, limits, metrics

    def compute(self, header: Header, request: Request, remaining_s: float) -> Computed:
        """Return the sum over the request's shards, from Triton where it answers in time."""
        if self._fallback is not None and header.num_tokens < self._limits.min_tokens:
            return self._fallback.compute(header, request, remaining_s)
        if self._availability.is_up:
            try:
                return self._ask(header, request, remaining_s)
            except UnderstudyError as error:
                self._availability.mark_down(error.message)
        self._metrics.fallbacks.inc()
        if self._fallback is None:
            raise Unavailable("Triton, which computes for this worker, is away; use a replica.")
        return self._fallback.compute(header, request, remaining_s)

    def _ask(self, header: Header, request: Request, remaining_s: float) -> Computed:
        timeout_s = min(self._limits.timeout_s, DEADLINE_SHARE * remaining_s)
        traceparent = request.traces[0].traceparent if request.traces else ""
        with self._metrics.triton_call.time():
            total = self._backend.compute(
                header, request, timeout_s=timeout_s, traceparent=traceparent
            )
        return Computed(total, "triton")
