"""The queue of an expert worker, kept by layer, and the one thread that computes.

The layer whose oldest frame waited longest goes next, with every frame of that layer that is here
by then, whichever attention worker sent it. Nobody waits for a frame that has not arrived, so a
slow attention worker delays itself only. Frames of one batch run back to back on weights that are
in cache, each in a GEMM of its own: how a GEMM rounds depends on its number of rows (MKL on AVX2:
below four), and an answer must not depend on who else was asking.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from understudy.exchange.frame import Frame


@dataclass(frozen=True, slots=True)
class Work:
    """A whole request message, accepted and not yet answered."""

    frame: Frame
    received_ns: int
    answer: Callable[[list[bytes]], None]
    """Sends the frames of the answer and frees the lane; safe to call from any thread."""

    @property
    def deadline_ns(self) -> int:
        """When the sender no longer wants the answer, on this process's monotonic clock."""
        return self.received_ns + self.frame.header.remaining_us * 1000


class LayerQueue:
    """Works by layer, the layer with the oldest work first."""

    def __init__(self) -> None:
        self._layers: OrderedDict[int, deque[Work]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(works) for works in self._layers.values())

    def put(self, work: Work) -> None:
        """Append a work to its layer's line."""
        self._layers.setdefault(work.frame.header.layer, deque()).append(work)

    def take(self) -> list[Work]:
        """Remove and return every work of the layer whose head is oldest; [] when empty."""
        if not self._layers:
            return []
        _, works = self._layers.popitem(last=False)
        return list(works)


class ComputeThread:
    """One thread that takes batches off a queue until it is closed."""

    def __init__(self, run_batch: Callable[[list[Work]], None]) -> None:
        """Hand each batch to `run_batch`, which must answer every work and raise nothing."""
        self._run_batch = run_batch
        self._queue = LayerQueue()
        self._condition = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="experts-compute", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, work: Work) -> None:
        """Queue a work; safe from any thread."""
        with self._condition:
            self._queue.put(work)
            self._condition.notify()

    def close(self) -> None:
        """Let the queue run empty, then end the thread."""
        with self._condition:
            self._is_closed = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            self._run_batch(batch)

    def _next(self) -> list[Work]:
        with self._condition:
            self._condition.wait_for(lambda: self._is_closed or len(self._queue) > 0)
            return self._queue.take()


def now_ns() -> int:
    """Return this process's monotonic clock."""
    return time.monotonic_ns()
