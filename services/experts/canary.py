"""A small question asked of Triton again and again, whose answer is known.

Readiness is not enough: a dead python backend still reports ready, and every call to it fails. The
canary computes a real sum and compares it with this process's. A server without the model is told
to load it; a model that answers wrongly or not at all is unloaded and loaded again.
"""

import logging
import threading
import time
from typing import Final, Protocol

import torch

from services.experts.executors import Availability, Backend
from services.experts.holdings import Holdings
from services.experts.metrics import ExpertsMetrics
from understudy.errors import DeadlineExceeded, Internal, UnderstudyError
from understudy.exchange.frame import FrameType, Header
from understudy.exchange.tensors import Request

INTERVAL_S: Final = 1.0
TIMEOUT_S: Final = 2.0
RELOAD_TIMEOUT_S: Final = 120.0
RELOAD_INTERVAL_S: Final = 5.0
MAX_LATE: Final = 3
"""Late answers in a row after which the model is loaded again; a busy server is only slow."""
TOLERANCE: Final = 1e-3
"""Relative to the largest value of the sum: far above rounding, far below other weights."""
FAST_TOLERANCE: Final = 5e-2
"""The same where this process rounds activations to int8, which Triton does not."""
log = logging.getLogger(__name__)


class Server(Backend, Protocol):
    """A Triton server whose model can be loaded again."""

    def is_live(self, timeout_s: float) -> bool:
        """Whether the server answers, whatever its models do."""
        ...

    def reload(self, timeout_s: float) -> None:
        """Unload the model where it is loaded, load it, and check that it is of these weights.

        Raises FailedPrecondition naming what does not fit, or what Triton says.
        """
        ...


class Canary:
    """Keeps an `Availability` true, on a thread of its own."""

    def __init__(
        self,
        server: Server,
        holdings: Holdings,
        availability: Availability,
        metrics: ExpertsMetrics,
        *,
        tolerance: float = TOLERANCE,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._server, self._availability, self._metrics = server, availability, metrics
        self._interval_s, self._tolerance = interval_s, tolerance
        self._header, self._request = canary_request(holdings)
        self._expected = holdings.compute(self._header, self._request)
        self._num_late = 0
        self._reload_at_s = 0.0
        self._is_closed = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="experts-canary", daemon=True)
        availability.subscribe(self._wake.set)

    def start(self) -> None:
        """Start asking."""
        self._thread.start()

    def close(self) -> None:
        """Stop asking; a load that has begun is waited for."""
        self._is_closed = True
        self._wake.set()
        self._thread.join(RELOAD_TIMEOUT_S)

    def look(self) -> None:
        """Ask once, and mend what can be mended."""
        try:
            self._ask()
        except UnderstudyError as error:
            self._metrics.canary_failures.inc()
            self._availability.mark_down(error.message)
            self._num_late += isinstance(error, DeadlineExceeded)
            if not isinstance(error, DeadlineExceeded) or self._num_late >= MAX_LATE:
                self._mend()
            return
        self._num_late = 0
        self._availability.mark_up()

    def _run(self) -> None:
        while not self._is_closed:
            self._wake.clear()
            self.look()
            self._wake.wait(self._interval_s)

    def _ask(self) -> None:
        total = self._server.compute(
            self._header, self._request, timeout_s=TIMEOUT_S, traceparent=""
        )
        difference = (total - self._expected).abs().max()
        if not difference <= self._tolerance * self._expected.abs().max():  # true for NaN as well
            raise Internal("Triton's answer to the canary is not the sum of these weights.")

    def _mend(self) -> None:
        now = time.monotonic()
        if now < self._reload_at_s or not self._server.is_live(TIMEOUT_S):
            return
        self._reload_at_s = now + RELOAD_INTERVAL_S
        try:
            self._server.reload(RELOAD_TIMEOUT_S)
            self._ask()
        except UnderstudyError as error:
            log.warning("Triton does not serve this worker's package: %s", error.message)
            self._availability.mark_down(error.message)
            return
        self._num_late = 0
        self._metrics.triton_loads.inc()
        self._availability.mark_up()


def canary_request(holdings: Holdings) -> tuple[Header, Request]:
    """Return a request of one seeded token for the first layer and shard that are held."""
    config, shard, layer = holdings.config, holdings.shards[0], holdings.layers[0]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, config.hidden_size, generator=generator)
    num_choices = config.num_choices(layer)
    header = Header(
        FrameType.REQUEST, 0, 0, layer, 0, 0, 1, config.hidden_size, num_choices,
        shard, 1,
    )  # fmt: skip
    if not num_choices:
        return header, Request((), hidden, None, None)
    first = shard * (config.num_experts // config.num_ffn_shards)
    # The first expert of the shard, and others whatever they are: only those held here count.
    ids = (first + torch.arange(num_choices)) % config.num_experts
    return header, Request((), hidden, ids[None], torch.full((1, num_choices), 1 / num_choices))
