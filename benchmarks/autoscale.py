"""Is the controller's scaling worth its code? `python -m benchmarks.autoscale [--quick]`.

The same `decide` as in the controller sizes a simulated pool under a request trace, against a
fixed peak size, the horizontal pod autoscaler on engine utilisation, on sequences in flight and on
queue length, and llm-d's KEDA law. Each is tuned by grid search on the first half of the trace (the
cheapest point that meets 95 % there, then the cheapest that meets 99 %) and scored on the second
half, which the tuning never sees.

`--measure` times the engine of this repository and prints the worker's costs instead;
`--placement` compares what the router counts as load: sequences, or prompt tokens to be read.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from benchmarks.simulation.capacity import MEASURED, measure
from benchmarks.simulation.fleet import Fleet, Setup
from benchmarks.simulation.policies import Fixed, Objectives
from benchmarks.simulation.scoring import (
    ATTAINMENTS,
    WARM_UP_S,
    Point,
    Result,
    Tuning,
    compare,
    score,
    tune,
)
from benchmarks.simulation.traces import AZURE_CONV, Trace, diurnal, read_trace, times
from services.router.placing import load_tokens

OBJECTIVES: Final = Objectives(ttft_s=5.0, ttft_token_s=0.010, tpot_s=0.2)
"""First token within 5 s plus 10 ms a prompt token, then 0.2 s a token: beside four others the
measured worker takes about 9 ms a prompt token. A faster one divides all of it."""
START_S: Final = 180.0
MAX_REPLICAS: Final = 60
"""About a quarter more than the largest fixed size that a tuning chooses."""
QUICK_S: Final = 1200.0
PLACED: Final = (40, 44, 48, 60)
"""Fixed sizes that placements are compared at."""


def print_results(trace: Trace, attainment: float, results: Sequence[Result]) -> None:
    """Print the table of one trace."""
    hours = {one.policy: one.scored.worker_hours for one in results}
    length_h = trace.requests[-1].at_s / 3600
    print(f"\n{trace.name}: {len(trace.requests)} requests, {length_h:.2f} h", end="; ")
    print(f"tuned for {attainment:.0%}\n")
    head = (
        "policy", "tuned to", "1st half: within SLO", "2nd half: within SLO", "worker-hours",
        "Understudy / it", "peak", "changes", "TTFT p99 s", "TPOT p99 s",
    )  # fmt: skip
    print("|", " | ".join(head), "|")
    print("|" + "---|" * len(head))
    for one in results:
        cells = (
            one.policy,
            ", ".join(f"{name} {value:g}" for name, value in one.point.items()),
            f"{one.tuned.attainment:.2%}",
            f"{one.scored.attainment:.2%}",
            f"{one.scored.worker_hours:.2f}",
            f"{hours['Understudy'] / one.scored.worker_hours:.2f}",
            str(one.scored.peak),
            str(one.scored.changes),
            f"{one.scored.ttft_p99_s:.1f}",
            f"{one.scored.tpot_p99_s:.3f}",
        )
        print("|", " | ".join(cells), "|")


def scenarios(trace: Trace, *, is_quick: bool) -> list[tuple[Trace, int, bool]]:
    """Return traces, their load factor, and whether policies are tuned on them anew."""
    if is_quick:
        start = [one for one in trace.requests if one.at_s < QUICK_S]
        return [(replace(trace, name=f"{trace.name}, its start", requests=tuple(start)), 1, True)]
    return [(trace, 1, True), (times(trace, 10), 10, False), (diurnal(trace), 1, True)]


def print_placements(trace: Trace) -> None:
    """Print how pools of fixed sizes do, by what a router counts as a worker's load."""
    counts = {"sequences": lambda num, _: num, "prompt tokens": load_tokens}
    print("| workers | load in | within SLO | TTFT p99 s | TPOT p99 s |\n|---|---|---|---|---|")
    for replicas in PLACED:
        for name, load in counts.items():
            setup = Setup(MEASURED, initial=replicas, max_replicas=replicas, load=load)
            run = Fleet(setup, Fixed(replicas)).run(trace.requests)
            found = score(run, OBJECTIVES, WARM_UP_S, trace.requests[-1].at_s)
            cells = f"{found.attainment:.2%} | {found.ttft_p99_s:.1f} | {found.tpot_p99_s:.3f}"
            print(f"| {replicas} | {name} | {cells} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare all policies on all scenarios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.autoscale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the start of the trace")
    parser.add_argument("--trace", type=Path, default=AZURE_CONV, help="CSV of the same columns")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--measure", action="store_true", help="time the engine and print costs")
    parser.add_argument("--placement", action="store_true", help="compare what counts as load")
    wanted = parser.parse_args(arguments)
    if wanted.measure:
        print(measure())
        return
    try:
        trace = read_trace(wanted.trace)
    except (OSError, ValueError) as error:
        sys.exit(f"The trace cannot be read: {error}")
    if wanted.placement:
        print_placements(trace)
        return
    print(f"worker {MEASURED}, starts in {START_S:g} s; objectives {OBJECTIVES}")
    found: dict[str, object] = {"worker": asdict(MEASURED), "objectives": asdict(OBJECTIVES)}
    tuning: Tuning | None = None
    for scenario, factor, is_tuned in scenarios(trace, is_quick=wanted.quick):
        started_s = time.monotonic()
        setup = Setup(MEASURED, START_S, max_replicas=MAX_REPLICAS * factor)
        if is_tuned or tuning is None:
            tuning = tune(scenario, setup, OBJECTIVES)
        for attainment in ATTAINMENTS:
            points = _scaled(tuning.points(attainment), factor)
            results = compare(scenario, setup, OBJECTIVES, points)
            print_results(scenario, attainment, results)
            found[f"{scenario.name}, {attainment:.0%}"] = [asdict(one) for one in results]
        print(f"\n({time.monotonic() - started_s:.0f} s)", flush=True)
    if wanted.json:
        wanted.json.write_text(json.dumps(found, indent=1) + "\n")


def _scaled(points: dict[str, Point], factor: int) -> dict[str, Point]:
    """Return points for `factor` times the load: a fixed size grows with it, targets stay."""
    return {
        name: {key: value * factor if key == "replicas" else value for key, value in point.items()}
        for name, point in points.items()
    }


if __name__ == "__main__":
    main()
