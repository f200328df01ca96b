"""One session per connected router: which sequences it has, and what it has not read yet.

Lives on the event loop. Outputs wait in a bounded queue; a router that falls behind it loses its
sequences with ABORTED (it can place them again), so that neither the engine nor other routers ever
wait for it. While its queue is full, none of its commands are read.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, Protocol

from services.attention.metrics import SessionMetrics
from services.attention.outputs import Failed, StepOutput
from services.attention.sequence import SequenceKey
from understudy.errors import Aborted, InvalidArgument, Unavailable, UnderstudyError

RUNNING_SHARE: Final = 0.8


class Canceller(Protocol):
    """The part of the engine that sessions use."""

    def cancel(self, key: SequenceKey) -> None:
        """End a sequence before the next step."""
        ...


class Session:
    """The live sequences and unread outputs of one router."""

    def __init__(
        self, session_id: int, max_outputs: int, engine: Canceller, metrics: SessionMetrics
    ) -> None:
        self.session_id = session_id
        self._max_outputs = max_outputs
        self._engine = engine
        self._metrics = metrics
        self._live: set[int] = set()
        self._last_id = -1
        self._outputs: deque[StepOutput] = deque()
        self._has_news = asyncio.Event()
        self._has_room = asyncio.Event()
        self._last_step = -1
        self._end: UnderstudyError | None = None
        self._is_half_closed = False

    @property
    def num_live(self) -> int:
        """Sequences that have not ended."""
        return len(self._live)

    def begin(self, sequence_id: int) -> SequenceKey:
        """Register a sequence; an id that is not above all before it breaks the protocol.

        An id used twice would be two sequences to nobody: what is still under way for the first
        would reach the second.
        """
        if sequence_id <= self._last_id:
            raise InvalidArgument(
                f"Sequence {sequence_id} is not above {self._last_id}, the last of this session; "
                "count the sequences of a session upwards.",
                {"field": "submit.sequence_id"},
            )
        self._last_id = sequence_id
        self._live.add(sequence_id)
        return SequenceKey(self.session_id, sequence_id)

    def is_live(self, sequence_id: int) -> bool:
        """Return whether a sequence has not ended."""
        return sequence_id in self._live

    def cancel(self, sequence_id: int) -> None:
        """End a sequence on the router's wish; nothing more is said about it."""
        if sequence_id in self._live:
            self._live.discard(sequence_id)
            self._engine.cancel(SequenceKey(self.session_id, sequence_id))
            self._has_news.set()

    def cancel_all(self) -> None:
        """End every sequence: the router has left."""
        for sequence_id in tuple(self._live):
            self.cancel(sequence_id)

    def fail(self, sequence_id: int, error: UnderstudyError) -> None:
        """Tell the router that a sequence failed before the engine had it."""
        self.push(StepOutput(self._last_step + 1, failed=[Failed(sequence_id, error)]))

    def fail_all(self, error: UnderstudyError) -> None:
        """End every sequence and tell the router why."""
        lost = [Failed(sequence_id, error) for sequence_id in sorted(self._live)]
        for sequence_id in self._live:
            self._engine.cancel(SequenceKey(self.session_id, sequence_id))
        self._live.clear()
        if lost:
            self._append(StepOutput(self._last_step + 1, failed=lost))

    def push(self, output: StepOutput) -> None:
        """Queue what a step means to this router; one that reads too slowly loses its sequences."""
        current = self._only_live(output)
        if not (current.tokens or current.finished or current.failed):
            return
        if len(self._outputs) >= self._max_outputs:
            self._metrics.slow_readers.inc()
            self.fail_all(
                Aborted(
                    f"The session was read too slowly: {len(self._outputs)} outputs wait.",
                    {"max_outputs": str(self._max_outputs)},
                )
            )
            return
        self._live.difference_update(current.ended_ids)
        self._append(current)

    def half_close(self) -> None:
        """Note that the router sends no more commands; the session ends with its sequences."""
        self._is_half_closed = True
        self._has_news.set()

    def end(self, error: UnderstudyError) -> None:
        """Let the session fail with `error` once its sequences have ended and were reported."""
        self._end = error
        self._has_news.set()

    async def take(self) -> StepOutput | None:
        """Return the next output; None when the session is over. Raises what `end` was given."""
        while not self._outputs:
            if self._is_over:
                if self._end is not None:
                    raise self._end
                return None
            self._has_news.clear()
            await self._has_news.wait()
        output = self._outputs.popleft()
        self._has_room.set()
        return output

    async def wait_for_room(self) -> None:
        """Return once the router has read enough to be heard again."""
        while len(self._outputs) >= self._max_outputs:
            self._has_room.clear()
            await self._has_room.wait()

    @property
    def _is_over(self) -> bool:
        return not self._live and (self._end is not None or self._is_half_closed)

    def _only_live(self, output: StepOutput) -> StepOutput:
        return StepOutput(
            output.step,
            [run for run in output.tokens if run.sequence_id in self._live],
            [end for end in output.finished if end.sequence_id in self._live],
            [end for end in output.failed if end.sequence_id in self._live],
        )

    def _append(self, output: StepOutput) -> None:
        self._last_step = output.step = max(output.step, self._last_step + 1)
        self._outputs.append(output)
        self._has_news.set()


class SessionHub:
    """All sessions of the worker; hands the engine's outputs to them."""

    def __init__(self, *, max_outputs: int, engine: Canceller, metrics: SessionMetrics) -> None:
        """`max_outputs` is how many unread outputs a session may have."""
        self._max_outputs = max_outputs
        self._engine = engine
        self._metrics = metrics
        self._sessions: dict[int, Session] = {}
        self._num_opened = 0
        self._end: UnderstudyError | None = None
        self._has_ended_some = asyncio.Event()

    @property
    def num_live(self) -> int:
        """Sequences that have not ended, over all sessions."""
        return sum(session.num_live for session in self._sessions.values())

    @property
    def refusal(self) -> UnderstudyError | None:
        """Why no further sequences are taken, or None."""
        return self._end

    def open(self) -> Session:
        """Begin a session for a router that has connected."""
        self._num_opened += 1
        session = Session(self._num_opened, self._max_outputs, self._engine, self._metrics)
        if self._end is not None:
            session.end(self._end)
        self._sessions[session.session_id] = session
        self._metrics.sessions.set(len(self._sessions))
        return session

    def close(self, session: Session) -> None:
        """End a session whose router has left; its blocks are free before the next step."""
        session.cancel_all()
        self._sessions.pop(session.session_id, None)
        self._metrics.sessions.set(len(self._sessions))
        self._has_ended_some.set()

    def deliver(self, outputs: Mapping[int, StepOutput]) -> None:
        """Hand the outputs of a step to their sessions; those of closed sessions are dropped."""
        for session_id, output in outputs.items():
            session = self._sessions.get(session_id)
            if session is not None:
                session.push(output)
        self._has_ended_some.set()

    def refuse(self, error: UnderstudyError) -> None:
        """Take no more sequences; sessions end with `error` as theirs end."""
        self._end = error
        for session in self._sessions.values():
            session.end(error)

    def fail_all(self, error: UnderstudyError) -> None:
        """End every sequence of every session with `error`."""
        for session in self._sessions.values():
            session.fail_all(error)
        self._has_ended_some.set()

    async def drain(self, grace_s: float) -> int:
        """Refuse new sequences and wait for the running ones; return how many were handed over.

        What has not ended within most of `grace_s` ends with ABORTED: its router places it
        elsewhere. The rest of the grace is for the routers to read what was said.
        """
        self.refuse(Unavailable("This attention worker is draining; use another one."))
        await self._wait_until(lambda: self.num_live == 0, RUNNING_SHARE * grace_s)
        num_unfinished = self.num_live
        self.fail_all(Aborted("This attention worker drained before the sequence had ended."))
        await self._wait_until(lambda: not self._sessions, (1.0 - RUNNING_SHARE) * grace_s)
        return num_unfinished

    async def _wait_until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self._has_ended_some.clear()
                    await self._has_ended_some.wait()
