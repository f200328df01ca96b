"""A pool of simulated workers that a policy sizes: starts take time, drains finish their work."""

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from benchmarks.simulation.capacity import WorkerModel
from benchmarks.simulation.traces import Request
from benchmarks.simulation.workers import NEVER, Served, Window, Worker
from services.router.placing import load_tokens

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
    load: Callable[[int, int], int] = load_tokens
    """What a router takes for a worker's load: sequences, and prompt tokens to be read."""


@dataclass(slots=True)
class Run:
    """What came out of a run."""

    served: list[Served] = field(default_factory=list)
    sizes: list[tuple[float, int]] = field(default_factory=list)
    """When how many workers existed, draining and starting ones included."""

    def worker_hours(self, from_s: float, to_s: float) -> float:
        """Return the hours for which workers existed between two moments, summed over them."""
        ends = [at_s for at_s, _ in self.sizes[1:]] + [to_s]
        spans = zip(self.sizes, ends, strict=True)
        held_s = sum(
            size * max(min(end_s, to_s) - max(at_s, from_s), 0.0) for (at_s, size), end_s in spans
        )
        return held_s / 3600


class Fleet:
    """Runs one trace under one policy."""

    def __init__(self, setup: Setup, policy: Policy) -> None:
        self._setup = setup
        self._policy = policy
        self._serving = [Worker(setup.model, 0.0, setup.load) for _ in range(setup.initial)]
        self._leaving: list[Worker] = []
        self._starts: list[float] = []
        """When workers that start will serve, ascending."""
        self._events: list[tuple[float, int, int, Worker]] = []
        self._order: list[tuple[int, int, Worker]] = []
        """Workers by load; entries whose load is no longer true are skipped."""
        self._count = 0
        self._held: list[Served] = []
        self._run = Run(sizes=[(0.0, setup.initial)])
        for worker in self._serving:
            self._offer(worker)

    def run(self, requests: Sequence[Request]) -> Run:
        """Serve all requests; the policy is asked until the last one has arrived."""
        index, tick_s, last_s = 0, TICK_S, requests[-1].at_s
        while index < len(requests) or self._events or self._held:
            event_s = self._events[0][0] if self._events else NEVER
            arrival_s = requests[index].at_s if index < len(requests) else NEVER
            if tick_s <= min(event_s, arrival_s):
                self._start(tick_s)
                if tick_s <= last_s:
                    self._resize(tick_s)
                tick_s += TICK_S
            elif arrival_s <= event_s:
                served = Served(requests[index])
                self._run.served.append(served)
                self._place(served, arrival_s)
                index += 1
            else:
                self._happen()
        return self._run

    def _place(self, served: Served, now_s: float) -> None:
        """Give a request to the least loaded worker, as the router does."""
        self._start(now_s)
        while self._order:
            load, _, worker = heapq.heappop(self._order)
            if worker.is_serving and load == worker.load:
                worker.submit(served, now_s)
                self._changed(worker, now_s)
                return
        self._held.append(served)

    def _happen(self) -> None:
        now_s, _, version, worker = heapq.heappop(self._events)
        if version == worker.version:
            worker.event(now_s)
            self._changed(worker, now_s)

    def _changed(self, worker: Worker, now_s: float) -> None:
        self._count += 1
        if worker.next_s < NEVER:
            heapq.heappush(self._events, (worker.next_s, self._count, worker.version, worker))
        if worker.is_serving:
            self._offer(worker)
        elif not worker.in_flight:
            self._leaving.remove(worker)
            self._note(now_s)

    def _offer(self, worker: Worker) -> None:
        self._count += 1
        heapq.heappush(self._order, (worker.load, self._count, worker))

    def _start(self, now_s: float) -> None:
        while self._starts and self._starts[0] <= now_s:
            del self._starts[0]
            worker = Worker(self._setup.model, now_s, self._setup.load)
            self._serving.append(worker)
            self._offer(worker)
        if self._held and self._serving:
            held, self._held = self._held, []
            for served in held:
                self._place(served, now_s)

    def _resize(self, now_s: float) -> None:
        view = self._look(now_s)
        wanted = min(max(self._policy.size(view), 1), self._setup.max_replicas)
        for _ in range(wanted - view.desired):
            self._starts.append(now_s + self._setup.start_s)
        for _ in range(view.desired - wanted):
            if self._starts:
                self._starts.pop()
            else:
                self._retire(min(self._serving, key=lambda worker: worker.load))
        self._note(now_s)

    def _retire(self, worker: Worker) -> None:
        worker.is_serving = False
        self._serving.remove(worker)
        if worker.in_flight:
            self._leaving.append(worker)

    def _note(self, now_s: float) -> None:
        size = len(self._serving) + len(self._starts) + len(self._leaving)
        self._run.sizes.append((now_s, size))

    def _look(self, now_s: float) -> View:
        workers = self._serving + self._leaving
        for worker in workers:
            worker.advance(now_s)
        firsts: list[float] = []
        paces: list[float] = []
        total = Window()
        for worker in workers:
            total.add(worker.window)
            worker.window = Window()
            firsts += worker.firsts
            paces += worker.paces
            worker.firsts, worker.paces = [], []
        return View(
            now_s,
            len(self._serving) + len(self._starts),
            len(self._serving),
            len(self._starts),
            len(self._leaving),
            total,
            sum(worker.running for worker in workers),
            sum(len(worker.waiting) for worker in workers) + len(self._held),
            sum(worker.num_prompts for worker in workers),
            sum(worker.occupancy for worker in workers) / max(len(workers), 1),
            tail((value, 1.0) for value in firsts),
            tail((value, 1.0) for value in paces),
        )


def tail(weighted: Iterable[tuple[float, float]], quantile: float = TAIL) -> float | None:
    """Return a weighted quantile; None of nothing."""
    ordered = sorted(weighted)
    left = quantile * sum(weight for _, weight in ordered)
    for value, weight in ordered:
        left -= weight
        if left <= 0:
            return value
    return ordered[-1][0] if ordered else None
