"""Tunes policies on one half of a trace and scores them on the other."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.simulation.fleet import Fleet, Policy, Run, Setup, tail
from benchmarks.simulation.policies import (
    Fixed,
    Hpa,
    Objectives,
    Saturation,
    busy,
    in_flight,
    queue,
    understudy,
)
from benchmarks.simulation.traces import Trace
from services.controller.scaling.rules import PartRules, PoolRules

ATTAINMENTS: Final = (0.95, 0.99)
"""Shares of requests within the objectives that policies are tuned for, one after the other."""
WARM_UP_S: Final = 300.0
"""Not scored: no policy can act before it has seen anything and a worker has started."""
FIRST_S: Final = 120.0
"""The initial size serves the load of this much of the trace."""

DEFAULTS: Final = PoolRules("llm", PartRules())
"""What nobody tuned."""

Point = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy with the grid that it is tuned on."""

    name: str
    grid: Mapping[str, Sequence[float]]
    make: Callable[[Point], Policy]

    def points(self) -> Iterable[Point]:
        """Return all points of the grid."""
        for values in itertools.product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))


@dataclass(frozen=True, slots=True)
class Score:
    """How a policy did on part of a trace."""

    attainment: float
    """Share of requests that met both objectives."""
    worker_hours: float
    """Hours of all workers, starting and draining ones included."""
    peak: int
    """Most workers at once."""
    changes: int
    """Times the number of workers changed."""
    ttft_p99_s: float
    tpot_p99_s: float


@dataclass(frozen=True, slots=True)
class Result:
    """A tuned policy and its scores."""

    policy: str
    point: Point
    tuned: Score
    """On the first half, with the chosen point."""
    scored: Score
    """On the second half, which the tuning never saw."""


def contenders(objectives: Objectives, setup: Setup) -> list[Contender]:
    """Return all policies; sizes are bounded by the setup."""
    windows = (60.0, 180.0, 300.0)
    most = setup.max_replicas
    sizes = sorted({max(round(most * share / 40), 1) for share in range(8, 41, 2)})
    return [
        Contender("fixed peak", {"replicas": sizes}, lambda at: Fixed(int(at["replicas"]))),
        Contender(
            "HPA, engine utilisation",
            {"target": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), "down_window_s": windows},
            lambda at: Hpa(busy, at["target"], at["down_window_s"]),
        ),
        Contender(
            "HPA, sequences in flight",
            {"target": (1, 1.5, 2, 3, 4, 6, 8, 12, 16), "down_window_s": windows},
            lambda at: Hpa(in_flight, at["target"], at["down_window_s"]),
        ),
        Contender(
            "HPA, queue length",
            {"target": (0.25, 0.35, 0.5, 0.7, 1, 1.5, 2, 3, 4, 8), "down_window_s": windows},
            lambda at: Hpa(queue, at["target"], at["down_window_s"]),
        ),
        Contender(
            "KEDA, saturation band",
            {
                "low": (0.2, 0.3, 0.4, 0.55, 0.7, 0.85),
                "band": (0.15, 0.3),
                "down_window_s": windows,
            },
            lambda at: Saturation(
                objectives, at["low"], at["low"] + at["band"], at["down_window_s"]
            ),
        ),
        Contender(
            "Understudy",
            {"utilisation": (0.55, 0.6, 0.65, 0.7, 0.75, 0.8), "trend": (0.0, 0.5)},
            lambda at: understudy(objectives, setup.start_s, most, at),
        ),
        Contender(
            "Understudy, its defaults",
            {"utilisation": (DEFAULTS.utilisation,), "trend": (DEFAULTS.trend,)},
            lambda at: understudy(objectives, setup.start_s, most, at),
        ),
    ]


def initial_size(trace: Trace, setup: Setup, objectives: Objectives) -> int:
    """Return the workers that the first minutes of a trace keep busy at 70 %."""
    model = setup.model
    work_s = sum(
        one.prompt * model.prefill_s + one.output * model.decode_s
        for one in trace.requests
        if one.at_s < FIRST_S
    )
    capacity = 1 - model.fixed_s / objectives.tpot_s
    return min(max(math.ceil(work_s / FIRST_S / capacity / 0.7), 1), setup.max_replicas)


@dataclass(frozen=True, slots=True)
class Tuning:
    """How every point of every policy's grid did on the first half of a trace."""

    scores: Mapping[str, Sequence[tuple[Point, Score]]]

    def points(self, attainment: float) -> dict[str, Point]:
        """Return the cheapest points that meet the attainment; else those that come nearest."""
        return {name: _cheapest(tried, attainment) for name, tried in self.scores.items()}


def tune(trace: Trace, setup: Setup, objectives: Objectives) -> Tuning:
    """Run the first half under every point of every grid."""
    setup = replace(setup, initial=initial_size(trace, setup, objectives))
    half = trace.first_half()
    end_s = half.requests[-1].at_s
    return Tuning(
        {
            contender.name: [
                (point, score(_run(contender, point, half, setup), objectives, WARM_UP_S, end_s))
                for point in contender.points()
            ]
            for contender in contenders(objectives, setup)
        }
    )


def compare(
    trace: Trace, setup: Setup, objectives: Objectives, points: Mapping[str, Point]
) -> list[Result]:
    """Score every policy at its point on the second half of a trace."""
    setup = replace(setup, initial=initial_size(trace, setup, objectives))
    end_s = trace.requests[-1].at_s
    results: list[Result] = []
    for contender in contenders(objectives, setup):
        point = points[contender.name]
        run = _run(contender, point, trace, setup)
        results.append(
            Result(
                contender.name,
                point,
                score(run, objectives, WARM_UP_S, trace.half_s),
                score(run, objectives, trace.half_s, end_s),
            )
        )
    return results


def _run(contender: Contender, point: Point, trace: Trace, setup: Setup) -> Run:
    policy = contender.make(point)
    start = replace(setup, initial=policy.replicas) if isinstance(policy, Fixed) else setup
    return Fleet(start, policy).run(trace.requests)


def _cheapest(tried: Sequence[tuple[Point, Score]], attainment: float) -> Point:
    good = [one for one in tried if one[1].attainment >= attainment]
    if good:
        return min(good, key=lambda one: one[1].worker_hours)[0]
    return max(tried, key=lambda one: one[1].attainment)[0]


def score(run: Run, objectives: Objectives, from_s: float, to_s: float) -> Score:
    """Score the requests that arrived, and the workers that existed, between two moments."""
    served = [one for one in run.served if from_s <= one.request.at_s <= to_s]
    good = sum(
        one.ttft_s <= objectives.allows_s(one.request.prompt) and one.tpot_s <= objectives.tpot_s
        for one in served
    )
    sizes = [size for at_s, size in run.sizes if from_s <= at_s <= to_s]
    return Score(
        good / len(served),
        run.worker_hours(from_s, to_s),
        max(sizes, default=0),
        sum(before != after for before, after in itertools.pairwise(sizes)),
        tail(((one.ttft_s, 1.0) for one in served), 0.99) or 0.0,
        tail(((one.tpot_s, 1.0) for one in served), 0.99) or 0.0,
    )
