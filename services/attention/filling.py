"""What one step computes, and what is left of its token budget. Plain bookkeeping."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from services.attention.forecast import Backlog
from services.attention.sequence import Priority, Sequence, SequenceKey

MIXED_GROWTH: Final = 2
BACKLOG_STEPS: Final = 256
"""A step is as large as one in so many of the prompt tokens that wait to be read."""
ATTENTION_WEIGHT: Final = 6
"""What a product of attention costs in those of matrices: it is float32, it shares no reading with
other sequences, and its keys and values come from memory. Fitted to steps of SmolLM2 measured with
1 to 8 tokens of a prompt at 0 to 1,900 tokens of context (decision 0006)."""


def doubling_context(layer_macs: int, attention_macs: int) -> int:
    """Return the context at which a token of a prompt costs twice what it does at its beginning.

    `layer_macs` are the products of one position outside of attention, `attention_macs` those of
    one position for each position that it sees.
    """
    return max(1, layer_macs // (ATTENTION_WEIGHT * attention_macs))


def step_budget(
    whole: int, mixed: int, decoding: Iterable[Sequence], backlog: Iterable[Backlog]
) -> int:
    """Return how many positions a step computes at most.

    All of it while nobody reads an answer; batch priority is in no hurry, in either.
    """
    live = [sequence for sequence in decoding if sequence.priority < Priority.BATCH]
    if not live:
        return whole
    num_pending = sum(sequence.num_pending for sequence in live)
    num_backlog = sum(one.num_tokens for one in backlog if one.priority < Priority.BATCH)
    return shared_budget(whole, mixed, num_pending, num_backlog)


def shared_budget(whole: int, mixed: int, num_pending: int, num_backlog: int) -> int:
    """Return the positions of a step that decodes `num_pending` tokens beside prompts.

    `mixed`, and never less than twice what is decoded: a prompt then about doubles a step, and many
    decodes do not crowd each other out. A backlog of many prompts gets more, as much as reads it in
    `BACKLOG_STEPS`: the fixed cost of steps would otherwise let the queue grow for ever.
    """
    hurry = -(-num_backlog // BACKLOG_STEPS)
    return min(whole, max(mixed, MIXED_GROWTH * num_pending, hurry))


def batch_budget(budget: int, share: float, live: Iterable[Sequence]) -> int:
    """Return how much of a step sequences of batch priority get: all of it among themselves."""
    if all(sequence.priority is Priority.BATCH for sequence in live):
        return budget
    return max(1, int(budget * share))


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
    a step in which others are computed. Where `doubling` is set, a token of a prompt takes as much
    more of the budget as it costs at its context, so that a long prompt's late tokens come in
    smaller chunks and steps last about as long; a decode takes one whatever its context, because
    its step has that cost anyway.
    """

    def __init__(self, budget: int, batch_budget: int, doubling: int = 0) -> None:
        self._left = budget
        self._batch_left = batch_budget
        self._doubling = doubling
        self._chunks: dict[SequenceKey, ScheduledChunk] = {}
        self._spent: dict[SequenceKey, int] = {}

    @property
    def chunks(self) -> list[ScheduledChunk]:
        """The chunks in the order in which they were added."""
        return list(self._chunks.values())

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.key in self._chunks

    def room(self, priority: Priority) -> int:
        """Return how much of the budget is left to this class."""
        left = min(self._left, self._batch_left) if priority is Priority.BATCH else self._left
        return max(0, left)

    def fitting(self, sequence: Sequence) -> int:
        """Return how many tokens of a sequence fit; at least one where there is room at all."""
        room = self.room(sequence.priority)
        if not room or not self._is_weighed(sequence):
            return room
        each = self._doubling + sequence.num_computed
        return max(1, (2 * room * self._doubling + each) // (2 * each))  # to the nearest

    def add(self, sequence: Sequence, num_tokens: int) -> None:
        """Compute the next tokens of a sequence."""
        self._chunks[sequence.key] = ScheduledChunk(sequence, num_tokens)
        cost = num_tokens
        if self._is_weighed(sequence):
            cost += num_tokens * sequence.num_computed // self._doubling
        self._spent[sequence.key] = cost
        self._spend(sequence, cost)

    def withdraw(self, sequence: Sequence) -> None:
        """Compute nothing of a sequence after all."""
        chunk = self._chunks.pop(sequence.key, None)
        if chunk is not None:
            self._spend(sequence, -self._spent.pop(sequence.key))

    def _is_weighed(self, sequence: Sequence) -> bool:
        return self._doubling > 0 and not sequence.is_decoding

    def _spend(self, sequence: Sequence, cost: int) -> None:
        self._left -= cost
        if sequence.priority is Priority.BATCH:
            self._batch_left -= cost
