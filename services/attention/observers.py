"""What the engine tells experts that compute elsewhere, so that their spans join the trace."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TraceSegment:
    """Consecutive rows of a step's hidden states that belong to one attempt.

    Segments come in row order and add up to all T rows; `traceparent` is empty when not sampled.
    """

    traceparent: str
    num_rows: int


class StepInterrupted(Exception):
    """A forward that nobody computed was given up: the engine thread is wanted elsewhere.

    No failure: nothing was advanced, and the same forward is run again.
    """


class StepObserver(Protocol):
    """Hears of each forward before it starts and of each attempt that ended."""

    def begin_step(self, step: int, segments: Sequence[TraceSegment], deadline_s: float) -> None:
        """Announce the next forward; called by the engine thread.

        The earliest deadline of any live sequence, on the monotonic clock, says until when a
        forward that nobody computes may hold the thread up.
        """
        ...

    def end_trace(self, traceparent: str) -> None:
        """Announce that no further rows of this attempt will come; called by the engine thread."""
        ...


class NoObserver:
    """The `StepObserver` of a model whose experts are local."""

    def begin_step(self, step: int, segments: Sequence[TraceSegment], deadline_s: float) -> None:
        """Ignore the step."""

    def end_trace(self, traceparent: str) -> None:
        """Ignore the end."""
