"""A pool of simulated workers that a policy sizes: starts take time, drains finish their work."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from benchmarks.simulation.capacity import WorkerModel
from benchmarks.simulation.traces import Request
from benchmarks.simulation.workers import Served, Window, Worker

TICK_S: Final = 15.0
"""Pause between two looks of a policy: the period of the horizontal pod autoscaler."""
TAIL: Final = 0.9
"""Quantile that latencies are reported at."""


@dataclass(frozen=True, slots=True)
class View:
    """What a policy sees: counts of pods and the metrics of the last window."""

    at_s: float
    desired: int
    ready: int
    starting: int
    draining: int
    window: Window
    """Sum over workers, those that drain included."""
    running: int
    waiting: int
    num_prompts: int
    """Sequences whose first token has not come."""
    occupancy: float
    ttft_s: float | None
    tpot_s: float | None


class Policy(Protocol):
    """Sizes the pool."""

    def size(self, view: View) -> int:
        """Return the replicas wanted now."""
        ...


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run takes place in."""

    model: WorkerModel
    start_s: float = 180.0
    """From asking for a worker until it serves."""
    initial: int = 8
    """Workers that serve at the beginning."""
    max_replicas: int = 64


@dataclass(slots=True)
class Run:
    """What came out of a run."""

    served: list[Served] = field(default_factory=list)
    sizes: list[tuple[float, int]] = field(default_factory=list)
    """When how many workers existed, draining and starting ones included."""
    ended_s: float = 0.0


class Fleet:
    """Runs one trace under one policy."""

    def __init__(self, setup: Setup, policy: Policy) -> None:
        self._setup = setup
        self._policy = policy
        self._workers = [Worker(setup.model, 0.0) for _ in range(setup.initial)]
        self._leaving: list[Worker] = []
        self._starts: list[float] = []
        """When workers that start will serve, ascending."""
        self._events: list[tuple[float, int, int, Worker]] = []
        self._order: list[tuple[int, int, Worker]] = []
        """Serving workers by load; entries whose load is stale are skipped."""
        self._count = 0
        self._held: list[Served] = []
        self._run = Run(sizes=[(0.0, setup.initial)])
        self._recent: list[Served] = []
        for worker in self._workers:
            self._offer(worker)

    def run(self, requests: Sequence[Request], until_s: float | None = None) -> Run:
        """Serve all requests; the policy is asked until the last has arrived (or `until_s`)."""
        last_s = requests[-1].at_s if until_s is None else until_s
        index, tick_s = 0, TICK_S
        while True:
            event_s = self._events[0][0] if self._events else float("inf")
            arrival_s = requests[index].at_s if index < len(requests) else float("inf")
            if tick_s <= min(event_s, arrival_s) and tick_s <= last_s:
                self._tick(tick_s)
                tick_s += TICK_S
            elif arrival_s <= event_s and index < len(requests):
                self._arrive(Served(requests[index]), arrival_s)
                index += 1
            elif self._events:
                self._happen()
            else:
                break
        self._run.ended_s = max(last_s, max(one.last_s for one in self._run.served))
        return self._run

    def _arrive(self, served: Served, now_s: float) -> None:
        self._run.served.append(served)
        self._recent.append(served)
        self._serve(now_s)
        while self._order:
            load, _, worker = heapq.heappop(self._order)
            if load == worker.in_flight and worker in self._workers:
                worker.submit(served, now_s)
                self._changed(worker)
                return
        self._held.append(served)

    def _happen(self) -> None:
        now_s, _, version, worker = heapq.heappop(self._events)
        if version != worker.version:
            return
        worker.event(now_s)
        self._changed(worker)

    def _changed(self, worker: Worker) -> None:
        self._count += 1
        if worker.next_s < float("inf"):
            heapq.heappush(self._events, (worker.next_s, self._count, worker.version, worker))
        if not worker.is_draining:
            self._offer(worker)

    def _offer(self, worker: Worker) -> None:
        self._count += 1
        heapq.heappush(self._order, (worker.in_flight, self._count, worker))
