"""What one step computes, and what is left of its token budget. Plain bookkeeping."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from services.attention.sequence import Priority, Sequence, SequenceKey

MIXED_GROWTH: Final = 2
BACKLOG_STEPS: Final = 256
"""Steps in which prompts that wait to be read are to be read."""


def step_budget(
    whole: int, mixed: int, decoding: Iterable[Sequence], backlog: Callable[[], int]
) -> int:
    """Return how many positions a step computes at most.

    `backlog` counts the prompt tokens yet to be read; it is asked while somebody reads an answer.
    """
    live = [sequence for sequence in decoding if sequence.priority < Priority.BATCH]
    if not live:
        return whole
    num_pending = sum(sequence.num_pending for sequence in live)
    return shared_budget(whole, mixed, num_pending, backlog())


def shared_budget(whole: int, mixed: int, num_pending: int, num_backlog: int) -> int:
    """Return the positions of a step that decodes `num_pending` tokens beside prompts.

    `mixed`, and never less than twice what is decoded: a prompt then about doubles a step, and many
    decodes do not crowd each other out. A backlog of many prompts gets more, as much as reads it in
    `BACKLOG_STEPS`: the fixed cost of steps would otherwise let the queue grow for ever.
    """
    hurry = -(-num_backlog // BACKLOG_STEPS)
    return min(whole, max(mixed, MIXED_GROWTH * num_pending, hurry))


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """The next `num_tokens` tokens of a sequence."""

    sequence: Sequence
    num_tokens: int

    @property
    def is_sampling(self) -> bool:
        """Whether the step produces this sequence's next token."""
        return self.num_tokens == self.sequence.num_pending


class StepPlan:
    """The chunks of the next step, which never exceed its budget.

    Sequences of batch priority share `batch_budget` of it: that bounds how much longer they make
    a step in which others are computed.
    """

    def __init__(self, budget: int, batch_budget: int) -> None:
        self._left = budget
        self._batch_left = batch_budget
        self._chunks: dict[SequenceKey, ScheduledChunk] = {}

    @property
    def chunks(self) -> list[ScheduledChunk]:
        """The chunks in the order in which they were added."""
        return list(self._chunks.values())

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.key in self._chunks

    def room(self, priority: Priority) -> int:
        """Return how many tokens a sequence of this class may still add."""
        left = min(self._left, self._batch_left) if priority is Priority.BATCH else self._left
        return max(0, left)

    def add(self, sequence: Sequence, num_tokens: int) -> None:
        """Compute the next tokens of a sequence."""
        self._chunks[sequence.key] = ScheduledChunk(sequence, num_tokens)
        self._spend(sequence, num_tokens)

    def withdraw(self, sequence: Sequence) -> None:
        """Compute nothing of a sequence after all."""
        chunk = self._chunks.pop(sequence.key, None)
        if chunk is not None:
            self._spend(sequence, -chunk.num_tokens)

    def _spend(self, sequence: Sequence, num_tokens: int) -> None:
        self._left -= num_tokens
        if sequence.priority is Priority.BATCH:
            self._batch_left -= num_tokens
