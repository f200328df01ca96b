"""One simulated worker: continuous batching in closed form between events.

Between two events the batch does not change, so all decoding sequences advance one token a step
and the prompt at the head gets the rest of each step's budget. A clock that counts steps tells
when the next sequence ends; nothing is simulated step by step.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.simulation.capacity import WorkerModel
from benchmarks.simulation.traces import Request
from services.router.placing import load_tokens

NEVER = float("inf")


@dataclass(slots=True)
class Served:
    """How a request fared."""

    request: Request
    first_s: float = NEVER
    """When its first token came."""
    last_s: float = NEVER
    """When its last token came."""

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.first_s - self.request.at_s

    @property
    def tpot_s(self) -> float:
        """Mean time of the tokens after the first."""
        return (self.last_s - self.first_s) / max(self.request.output - 1, 1)


@dataclass(slots=True)
class Window:
    """What a worker did since it was last read."""

    busy_s: float = 0.0
    steps: float = 0.0
    prefill_tokens: float = 0.0
    decode_tokens: float = 0.0
    ended: int = 0

    def add(self, other: "Window") -> None:
        """Add another worker's."""
        self.busy_s += other.busy_s
        self.steps += other.steps
        self.prefill_tokens += other.prefill_tokens
        self.decode_tokens += other.decode_tokens
        self.ended += other.ended


class Worker:
    """One worker that serves."""

    def __init__(
        self, model: WorkerModel, now_s: float, load: Callable[[int, int], int] = load_tokens
    ) -> None:
        """`load` weighs sequences and unread prompt tokens, as a router does that places them."""
        self.model = model
        self._load = load
        self.window = Window()
        self.waiting: deque[Served] = deque()
        self.version = 0
        """Counts plans: an event of an older plan is void."""
        self.next_s = NEVER
        """When the present plan has its next event."""
        self.paces: list[float] = []
        """Times per output token of requests that ended since they were last read."""
        self.firsts: list[float] = []
        """Times to first tokens that came since they were last read."""
        self.is_serving = True
        """Whether it takes new requests."""
        self._now_s = now_s
        self._prompts: deque[Served] = deque()
        self._left = 0.0
        """Prompt tokens that the head still needs."""
        self._decoding: list[tuple[float, int, Served]] = []
        self._clock = 0.0
        """Steps so far."""
        self._count = 0
        self._kv = 0
        self._unread = 0
        self._step_s = 0.0
        self._prefill = 0.0

    @property
    def running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._prompts) + len(self._decoding)

    @property
    def in_flight(self) -> int:
        """Sequences running and waiting."""
        return self.running + len(self.waiting)

    @property
    def load(self) -> int:
        """What the router takes for its load: prompts count until their first token comes."""
        return self._load(self.in_flight, self._unread)

    @property
    def occupancy(self) -> float:
        """Share of the KV that is taken."""
        return self._kv / self.model.kv_tokens

    @property
    def num_prompts(self) -> int:
        """Sequences whose first token has not come."""
        return len(self._prompts) + len(self.waiting)

    def submit(self, served: Served, now_s: float) -> None:
        """Take a request."""
        self.advance(now_s)
        self.waiting.append(served)
        self._unread += served.request.prompt
        self._plan()

    def advance(self, now_s: float) -> None:
        """Bring the books up to now; the plan stays."""
        elapsed_s, self._now_s = now_s - self._now_s, now_s
        if elapsed_s <= 0 or not self._step_s:
            return
        steps = elapsed_s / self._step_s
        window, num_decoding = self.window, len(self._decoding)
        self._clock += steps
        self._left -= steps * self._prefill
        window.busy_s += elapsed_s
        window.steps += steps
        window.prefill_tokens += steps * self._prefill
        window.decode_tokens += steps * num_decoding

    def event(self, now_s: float) -> None:
        """Do what the plan foresaw for now: a prompt is read, or sequences end."""
        self.advance(now_s)
        if self._prompts and self._left <= 1e-6:
            served = self._prompts.popleft()
            served.first_s = now_s
            self.firsts.append(served.ttft_s)
            self._unread -= served.request.prompt
            self._count += 1
            end = self._clock + served.request.output - 1
            heapq.heappush(self._decoding, (end, self._count, served))
            if self._prompts:
                self._left = float(self._prompts[0].request.prompt)
        while self._decoding and self._decoding[0][0] <= self._clock + 1e-6:
            served = heapq.heappop(self._decoding)[2]
            served.last_s = now_s
            self._kv -= _size(served)
            self.paces.append(served.tpot_s)
            self.window.ended += 1
        self._plan()

    def _plan(self) -> None:
        model, waiting = self.model, self.waiting
        while waiting and self.running < model.max_sequences:
            size = _size(waiting[0])
            if self._kv + size > model.kv_tokens and self.running:
                break
            served = waiting.popleft()
            self._kv += size
            self._prompts.append(served)
            if len(self._prompts) == 1:
                self._left = float(served.request.prompt)
        num_decoding = len(self._decoding)
        self.version += 1
        self._prefill = 0.0
        if self._prompts:
            prompt = self._prompts[0].request.prompt
            num_unread = self._unread - prompt + math.ceil(self._left)
            self._prefill = model.chunk(prompt, num_decoding, num_unread)
        elif not num_decoding:
            self._step_s, self.next_s = 0.0, NEVER
            return
        self._step_s = model.step_s(self._prefill, num_decoding)
        steps = self._left / self._prefill if self._prompts else NEVER
        if num_decoding:
            steps = min(steps, self._decoding[0][0] - self._clock)
        self.next_s = self._now_s + max(steps, 0.0) * self._step_s


def _size(served: Served) -> int:
    return served.request.prompt + served.request.output
