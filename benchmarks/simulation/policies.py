"""Policies that size a simulated pool: ours, and those that clusters usually run.

The autoscaler baselines follow the documented rules of Kubernetes' horizontal pod autoscaler:
tolerance 0.1, workers that are not ready count as idle when growing, growth to at most double or
four more per period, a stabilisation window for shrinking.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from benchmarks.simulation.fleet import Policy, View
from services.controller.scaling.deciding import decide
from services.controller.scaling.history import History
from services.controller.scaling.rules import PartRules, PoolRules, ScalingRules
from services.controller.scaling.signals import AttentionLoad, PodCounts, PoolSignals, Signals

TOLERANCE: Final = 0.1
SMOOTHING_TICKS: Final = 3
"""llm-d averages its saturation over 45 s."""
MAX_SATURATION: Final = 2.0


@dataclass(frozen=True, slots=True)
class Objectives:
    """What a request must meet."""

    ttft_s: float
    """Time to first token of the shortest prompt."""
    ttft_token_s: float
    """What each prompt token adds to it."""
    tpot_s: float
    """Mean time of the tokens after the first."""

    def allows_s(self, prompt: int) -> float:
        """Return the longest time to first token for a prompt."""
        return self.ttft_s + prompt * self.ttft_token_s


@dataclass(slots=True)
class Fixed:
    """A pool of one size."""

    replicas: int

    def size(self, view: View) -> int:  # noqa: ARG002
        """Return the size."""
        return self.replicas


@dataclass(slots=True)
class _Stabilised:
    """The behaviour section of a horizontal pod autoscaler."""

    down_window_s: float
    _past: deque[tuple[float, int]] = field(default_factory=deque)

    def settle(self, view: View, wanted: int) -> int:
        """Bound growth, and shrink to the most of the window at most."""
        self._past.append((view.at_s, wanted))
        while self._past[0][0] < view.at_s - self.down_window_s:
            self._past.popleft()
        if wanted >= view.desired:
            return min(wanted, max(2 * view.desired, view.desired + 4))
        return min(max(size for _, size in self._past), view.desired)


@dataclass(slots=True)
class Hpa:
    """The horizontal pod autoscaler on a mean per worker, such as a utilisation."""

    metric: Callable[[View], float]
    """Sum of the metric over ready workers."""
    target: float
    """Wanted mean of a worker."""
    down_window_s: float
    _behaviour: _Stabilised = field(init=False)

    def __post_init__(self) -> None:
        self._behaviour = _Stabilised(self.down_window_s)

    def size(self, view: View) -> int:
        """Return ceil(workers x mean / target), as the autoscaler does."""
        total = self.metric(view)
        wanted = view.desired
        ratio = total / max(view.ready, 1) / self.target
        if abs(ratio - 1) > TOLERANCE:
            counted = view.ready if ratio < 1 else view.ready + view.starting
            ratio_counted = total / max(counted, 1) / self.target
            # With workers that start counted as idle a growth may turn out as none.
            if ratio < 1 or ratio_counted > 1 + TOLERANCE:
                wanted = math.ceil(ratio_counted * counted)
        return self._behaviour.settle(view, max(wanted, 1))


@dataclass(slots=True)
class Saturation:
    """The law that llm-d runs through KEDA: latency over objective, held in a band."""

    objectives: Objectives
    low: float
    high: float
    down_window_s: float
    mean_prompt: float = 1155.0
    """Prompt length for which the objective of the first token is taken."""
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=SMOOTHING_TICKS))
    _behaviour: _Stabilised = field(init=False)

    def __post_init__(self) -> None:
        self._behaviour = _Stabilised(self.down_window_s)

    def size(self, view: View) -> int:
        """Return the size that brings the saturation to the band's nearer end."""
        ttft = (view.ttft_s or 0.0) / self.objectives.allows_s(round(self.mean_prompt))
        tpot = (view.tpot_s or 0.0) / self.objectives.tpot_s
        self._recent.append(min(max(ttft, tpot), MAX_SATURATION))
        saturation = sum(self._recent) / len(self._recent)
        wanted = view.desired
        if saturation > self.high:  # workers that start are credited
            wanted = max(math.ceil(view.ready * saturation / self.high), view.desired)
        elif saturation < self.low:
            wanted = math.ceil(view.ready * saturation / self.low)
        return self._behaviour.settle(view, max(wanted, 1))


@dataclass(slots=True)
class Understudy:
    """The controller's own `decide`."""

    rules: ScalingRules
    _history: History = field(default_factory=History)

    def size(self, view: View) -> int:
        """Return what `decide` says of the pool's attention workers."""
        window = view.window
        load = AttentionLoad(
            window_s=15.0,
            running=view.running,
            waiting=view.waiting,
            kv_occupancy=view.occupancy,
            steps=window.steps,
            step_s=window.busy_s,
            prefill_tokens=window.prefill_tokens,
            decode_tokens=window.decode_tokens,
            ended=window.ended,
        )
        counts = PodCounts(view.desired, view.ready, view.starting, 0, view.draining, view.ready)
        tpot_s = window.busy_s / window.steps if window.steps else None
        pool = PoolSignals(counts, load, ttft_s=view.ttft_s, tpot_s=tpot_s)
        decision = decide(Signals(view.at_s, {"llm": pool}), self.rules, self._history)
        self._history = decision.history
        return decision.replicas("llm")


def understudy(
    objectives: Objectives, start_s: float, max_replicas: int, point: Mapping[str, float]
) -> Policy:
    """Return our policy at a point of its grid."""
    pool = PoolRules(
        "llm",
        PartRules(1, max_replicas, gpus=1),
        ttft_s=objectives.allows_s(0),
        tpot_s=objectives.tpot_s,
        utilisation=point["utilisation"],
        trend=point["trend"],
        start_s=start_s,
    )
    # What takes a start to get back is not given away sooner: the window is not tuned.
    return Understudy(
        ScalingRules((pool,), max_gpus=max_replicas * 2, down_window_s=max(start_s, 60.0))
    )


def busy(view: View) -> float:
    """Share of the time that each worker computed, summed: what GPU utilisation shows."""
    return view.window.busy_s / 15.0


def in_flight(view: View) -> float:
    """Sequences running and waiting."""
    return float(view.running + view.waiting)


def queue(view: View) -> float:
    """Sequences whose first token has not come."""
    return float(view.num_prompts)
