"""The engine thread: takes commands between steps, computes, publishes. One per worker.

Everything that touches sequences or tensors happens on this thread, so nothing in it is locked.
If the loop body raises what nobody foresaw, the thread is dead for good: it says so once, and
every later call is refused.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from services.attention.core import EngineCore, EngineStats
from services.attention.metrics import EngineMetrics
from services.attention.outputs import StepOutput
from services.attention.sequence import Priority, SequenceKey, Submission
from services.attention.sharing import Payloads
from understudy.errors import Unavailable

MAX_NAP_S: Final = 1.0
STUCK_NAP_S: Final = 0.01
logger = logging.getLogger(__name__)

Command = Callable[[EngineCore], None]
Publish = Callable[[Mapping[int, StepOutput]], None]


class Engine:
    """Runs an `EngineCore` on a thread of its own; all methods are safe from any thread."""

    def __init__(
        self,
        make_core: Callable[[Callable[[SequenceKey, Payloads], None]], EngineCore],
        *,
        publish: Publish,
        on_death: Callable[[], None],
        metrics: EngineMetrics,
    ) -> None:
        """`publish` and `on_death` are called on the engine thread and must not block.

        `make_core` gets what brings loaded KV back to the engine thread.
        """
        self._core = make_core(self._loaded)
        self._publish = publish
        self._on_death = on_death
        self._metrics = metrics
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._cancels: deque[SequenceKey] = deque()
        self._is_stopping = threading.Event()
        self._is_dead = threading.Event()
        self._stats = self._core.stats()
        self._is_checked = True
        self._thread = threading.Thread(target=self._run, name="attention-engine", daemon=True)

    @property
    def is_dead(self) -> bool:
        """Whether the loop has failed."""
        return self._is_dead.is_set()

    @property
    def is_wanted(self) -> bool:
        """Whether a cancel waits to be heard, or the end: no forward should hold them up."""
        return bool(self._cancels) or self._is_stopping.is_set()

    @property
    def stats(self) -> EngineStats:
        """The load after the last step."""
        return self._stats

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the thread after the step it is in; live sequences are not heard of again."""
        self._is_stopping.set()
        self._inbox.put(_nothing)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def submit(self, submission: Submission) -> None:
        """Hand a sequence over. Raises Unavailable when the engine is dead or stopping."""
        if self.is_dead or self._is_stopping.is_set():
            raise Unavailable("The engine of this attention worker is not running.")
        self._inbox.put(lambda core: core.submit(submission))

    def cancel(self, key: SequenceKey) -> None:
        """End a sequence before the next step."""
        self._cancels.append(key)
        self._inbox.put(lambda core: core.cancel(self._cancels.popleft()))

    def call(self, command: Command) -> None:
        """Run something on the engine thread between two steps."""
        self._inbox.put(command)

    def _loaded(self, key: SequenceKey, payloads: Payloads) -> None:
        self._inbox.put(lambda core: core.loaded(key, payloads))

    def _run(self) -> None:
        try:
            has_computed = False
            while not self._is_stopping.is_set():
                self._take_commands(has_computed)
                has_computed = self._core.step()
                self._is_checked = self._is_checked and not has_computed
                self._report()
        except Exception:  # the engine loop: whatever it is, routers must learn of it
            logger.exception("The engine thread died; this worker serves nothing any more.")
            self._is_dead.set()
            self._on_death()

    def _take_commands(self, has_computed: bool) -> None:
        nap_s = 0.0 if has_computed else self._nap_s()
        try:
            command = self._inbox.get(timeout=nap_s) if nap_s else self._inbox.get_nowait()
            while True:
                command(self._core)
                command = self._inbox.get_nowait()
        except queue.Empty:
            if nap_s and self._core.is_idle:
                self._check_integrity()

    def _check_integrity(self) -> None:
        """Check the blocks once after each spell of work, when there is time: a leak is a bug."""
        if not self._is_checked:
            self._core.check_integrity()
            self._is_checked = True

    def _nap_s(self) -> float:
        if not self._core.is_idle:
            return STUCK_NAP_S
        deadline_s = self._core.next_deadline_s
        if deadline_s is None:
            return MAX_NAP_S
        return min(MAX_NAP_S, max(0.0, deadline_s - time.monotonic()))

    def _report(self) -> None:
        outputs = self._core.take_outputs()
        stats = self._core.stats()
        if stats != self._stats:
            self._stats = stats
            self._metrics.running_sequences.set(stats.num_running)
            self._metrics.waiting_sequences.set(stats.num_waiting)
            self._metrics.free_blocks.set(stats.num_free_blocks)
            self._metrics.held_blocks.set(stats.num_held_blocks)
            self._metrics.tenants.set(stats.num_tenants)
            for priority, num_waiting in zip(Priority, stats.waiting_by_priority, strict=True):
                labelled = self._metrics.waiting_by_priority.labels(priority=priority.name.lower())
                labelled.set(num_waiting)
        if outputs:
            self._publish(outputs)


def _nothing(core: EngineCore) -> None:
    """Wake the thread up."""
