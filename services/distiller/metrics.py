"""Instruments of the distiller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from prometheus_client import CollectorRegistry

from services.distiller.runs import Run
from understudy.telemetry.metrics import Instruments

STATES = ("queued", "running", "done", "failed")


def observe_runs(registry: CollectorRegistry, runs: Callable[[], Sequence[Run]]) -> None:
    """Export how many runs are in each state, counted when scraped."""
    gauge = Instruments("distiller", registry).gauge("runs", "Runs by state.", labels=("state",))

    def count(state: str) -> float:
        return float(sum(run.state == state for run in runs()))

    for state in STATES:
        gauge.labels(state).set_function(partial(count, state))
