"""Requests held for pools without workers, and what becomes of those pools.

A pool may sleep with no worker at all. Whoever waits for it is counted here; `reporting` tells the
controller, which wakes the pool and answers how long that takes. A request is then held as long
as its deadline and the setting allow. One that would wait longer is refused at once with the time
to come back at, and counts until then, or the pool would fall asleep before its caller returns.
A pool that was not seen asleep has lost its last worker, which may be back long before a new one
would be there: it is waited for like a pool that nobody sizes before a request is refused.
Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from services.router.metrics import RouterMetrics
from understudy.errors import ResourceExhausted, Unavailable
from understudy.rpc import Deadline

_Picked = TypeVar("_Picked")

_POLL_S: Final = 0.05
EXPIRY_S: Final = 30.0
"""What a controller said is believed for so long; it is asked more often while anything waits."""
RETURN_S: Final = 10.0
"""How long a pool is asked for by a request that does not wait for it, or beyond the time at which
a refused one was told to come back."""

SPREAD: Final = 0.25
"""Share of a delay over which those who are told it are spread, so that they do not all come back
in the instant in which the first worker is there."""
LONGEST_SPREAD_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one request waits for a worker of a pool without any."""

    worker_s: float
    """Longest wait when nobody says that the pool is being woken."""
    waking_s: float
    """Longest wait for a pool that is being woken; 0 where another pool stands in."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a controller said becomes of a pool."""

    num_replicas: int
    """Workers it was decided to have."""
    num_ready: int
    """Workers that take work."""
    reason: str
    """Why, and what was held back: sentences."""
    start_s: float
    """How long a worker takes to start."""

    @property
    def is_waking(self) -> bool:
        """Whether the first worker is on its way."""
        return self.num_replicas > 0 and self.num_ready == 0

    @property
    def is_asleep(self) -> bool:
        """Whether the pool has no worker and gets none."""
        return self.num_replicas == 0 and self.num_ready == 0


@dataclass(frozen=True, slots=True)
class _Known:
    """An outlook, when it came, since when the pool starts a worker, and whether it was asleep."""

    outlook: Outlook
    at_s: float
    since_s: float
    has_slept: bool


class Holding:
    """The requests that this router holds."""

    def __init__(
        self,
        metrics: RouterMetrics,
        clock_s: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`draw` returns numbers from 0 to 1, which spread those who are told to come back."""
        self._metrics = metrics
        self._clock_s = clock_s
        self._draw = draw
        self._held: dict[str, int] = {}
        self._wanted_until_s: dict[str, float] = {}
        self._known: dict[str, _Known] = {}
        self._changed = asyncio.Event()

    @contextmanager
    def hold(self, pool: str, patience: Patience) -> Iterator[Hold]:
        """Count a request as held for a pool while the block runs."""
        self._count(pool, 1)
        outcome = "left"
        try:
            yield Hold(self, pool, patience, self._clock_s)
            outcome = "served"
        except (ResourceExhausted, Unavailable):
            outcome = "refused"
            raise
        finally:
            self._count(pool, -1)
            self._metrics.holds.labels(pool, outcome).inc()

    def want(self, pool: str, seconds: float) -> None:
        """Ask for a pool for a while, for a request that does not wait for it."""
        now_s = self._clock_s()
        before_s = self._wanted_until_s.get(pool, now_s)
        self._wanted_until_s[pool] = max(now_s + seconds, before_s)
        self._held.setdefault(pool, 0)
        if before_s <= now_s:
            self._changed.set()

    def counts(self) -> dict[str, int]:
        """Return what the controller is told, by pool: requests held, one for those to return."""
        now_s = self._clock_s()
        return {
            pool: count + (self._wanted_until_s.get(pool, now_s) > now_s)
            for pool, count in self._held.items()
        }

    def learn(self, outlooks: Mapping[str, Outlook]) -> None:
        """Take what a controller said of pools; it says nothing of those that it does not size."""
        now_s = self._clock_s()
        for pool, outlook in outlooks.items():
            before, since_s, has_slept = self._known.get(pool), now_s, outlook.is_asleep
            if before is not None and now_s - before.at_s <= max(EXPIRY_S, before.outlook.start_s):
                since_s = before.since_s if before.outlook.is_waking else now_s
                has_slept |= before.has_slept and outlook.is_waking
            self._known[pool] = _Known(outlook, now_s, since_s, has_slept)

    def outlook(self, pool: str) -> Outlook | None:
        """Return what a controller last said of a pool; None where nobody did of late."""
        known = self._known.get(pool)
        if known is None or self._clock_s() - known.at_s > EXPIRY_S:
            return None
        return known.outlook

    def left_s(self, pool: str) -> float:
        """Return the time until a pool that is being woken should have its first worker."""
        known = self._known[pool]
        return max(known.since_s + known.outlook.start_s - self._clock_s(), 0.0)

    def has_slept(self, pool: str) -> bool:
        """Return whether a pool that is being woken was asleep; else it lost its last worker."""
        return self._known[pool].has_slept

    def spread_s(self, delay_s: float) -> float:
        """Return a delay that is never shorter, and longer by a part of it that differs."""
        return delay_s + self._draw() * min(SPREAD * delay_s, LONGEST_SPREAD_S)

    async def wait(self, timeout_s: float | None) -> None:
        """Return once a count has changed since the last call, or after a time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return
        self._changed.clear()

    def _count(self, pool: str, change: int) -> None:
        self._held[pool] = self._held.get(pool, 0) + change
        self._metrics.held.labels(pool).inc(change)
        self._changed.set()


class Hold:
    """One request's wait: `until` something is there, or `check` whether it goes on."""

    def __init__(
        self, holding: Holding, pool: str, patience: Patience, clock_s: Callable[[], float]
    ) -> None:
        self._holding = holding
        self._pool = pool
        self._patience = patience
        self._clock_s = clock_s
        self._since_s = clock_s()

    @property
    def waited_s(self) -> float:
        """Seconds waited so far."""
        return self._clock_s() - self._since_s

    async def until(self, pick: Callable[[], _Picked | None], deadline: Deadline) -> _Picked:
        """Return what `pick` finds, once it finds something; raises what `check` raises."""
        while (found := pick()) is None:
            self.check(deadline.remaining_s)
            await asyncio.sleep(min(_POLL_S, deadline.remaining_s))
            deadline.check()
        return found

    def check(self, time_left_s: float) -> None:
        """Return while the request may wait on; `time_left_s` is what its deadline leaves.

        Raises ResourceExhausted with the time to come back at when the pool sleeps or wakes too
        late, and Unavailable when nobody says what becomes of it.
        """
        outlook = self._holding.outlook(self._pool) if self._patience.waking_s else None
        if outlook is not None and outlook.is_waking:
            left_s = self._holding.left_s(self._pool)
            may_wait_s = min(time_left_s, self._patience.waking_s - self.waited_s)
            is_too_late = may_wait_s <= 0 or left_s > may_wait_s
            has_waited = self.waited_s >= self._patience.worker_s
            if is_too_late and (has_waited or self._holding.has_slept(self._pool)):
                raise self._refusal(outlook, "is being woken", left_s or RETURN_S)
        elif self.waited_s >= self._patience.worker_s:
            if outlook is not None and outlook.is_asleep:
                raise self._refusal(outlook, "sleeps", outlook.start_s or RETURN_S)
            raise Unavailable(
                f"No worker of the pool {self._pool!r} could be reached within "
                f"{self._patience.worker_s:g} s.",
                {"pool": self._pool},
            )

    def _refusal(self, outlook: Outlook, what: str, delay_s: float) -> ResourceExhausted:
        delay_s = self._holding.spread_s(delay_s)
        self._holding.want(self._pool, delay_s + RETURN_S)
        return ResourceExhausted(
            f"The pool {self._pool!r} {what}; try again in {delay_s:.0f} s. {outlook.reason}",
            {"pool": self._pool, "scaling": outlook.reason},
            retry_after_s=delay_s,
        )
