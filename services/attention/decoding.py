"""Postprocessing of a step: what a sampled token means for its sequence. No tensors.

A token may end the output (end of sequence, stop text, complete grammar, limit) or, under a
grammar, force tokens to follow. Forced tokens join the output without being sampled; their KV is
computed together with the next step's. A mask that allows a single token forces it as well, which
spares the forward pass that would have chosen it.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Final

import numpy as np

from services.attention.outputs import TokenRun
from services.attention.sequence import FinishReason, PackedMask, Sequence
from understudy.errors import UnsupportedSchema

WORD_BITS: Final = 32


class StopWatch:
    """`StopTexts` over the bytes of the output, so that a text is found across token borders."""

    def __init__(self, stop: Iterable[str], token_bytes: Callable[[int], bytes]) -> None:
        self._needles = [text.encode() for text in stop]
        self._token_bytes = token_bytes
        self._num_kept = max((len(needle) for needle in self._needles), default=1) - 1
        self._tail = b""

    def push(self, token: int) -> bool:
        """Add a token; return whether a stop text is complete."""
        text = self._tail + self._token_bytes(token)
        self._tail = text[len(text) - min(self._num_kept, len(text)) :]
        return any(needle in text for needle in self._needles)


class Decoding:
    """Turns chosen tokens into outputs; holds only what is the same for every sequence."""

    def __init__(self, eos_ids: Collection[int], max_context: int) -> None:
        self._eos_ids = frozenset(eos_ids)
        self._max_context = max_context

    def begin(self, sequence: Sequence, run: TokenRun) -> FinishReason | None:
        """Start the output: emit what the grammar forces before anything is computed.

        Committed tokens may already have reached a limit; then the sequence ends here.
        """
        if self._is_exhausted(sequence):
            return FinishReason.LENGTH
        return self._force(sequence, run)

    def append(
        self,
        sequence: Sequence,
        run: TokenRun,
        token: int,
        logprob: float,
        margin: float,
        mask_loss: float,
    ) -> FinishReason | None:
        """Append a sampled token and all that it forces; return why the output ends, if it does.

        Raises an UnderstudyError when the grammar refuses the token or cannot go on.
        """
        run.add(token, logprob, margin, mask_loss)
        return self._take(sequence, token) or self._force(sequence, run)

    def _force(self, sequence: Sequence, run: TokenRun) -> FinishReason | None:
        while forced := self._forced(sequence):
            for token in forced:
                run.add_forced(token)
                reason = self._take(sequence, token)
                if reason is not None:
                    return reason
        matcher = sequence.submission.matcher
        return FinishReason.STOP if matcher is not None and matcher.is_stopped else None

    def _forced(self, sequence: Sequence) -> list[int]:
        matcher = sequence.submission.matcher
        if matcher is None or matcher.is_stopped:
            return []
        forced = matcher.forced()
        if forced:
            return forced
        sequence.mask = matcher.mask()
        only = only_token(sequence.mask)
        return [] if only is None else [only]

    def _take(self, sequence: Sequence, token: int) -> FinishReason | None:
        submission = sequence.submission
        sequence.tokens.append(token)
        if token in self._eos_ids and not submission.params.ignore_eos:
            return FinishReason.STOP
        if submission.matcher is not None:
            submission.matcher.accept(token)
        if submission.stop_texts is not None and submission.stop_texts.push(token):
            return FinishReason.STOP
        return FinishReason.LENGTH if self._is_exhausted(sequence) else None

    def _is_exhausted(self, sequence: Sequence) -> bool:
        return (
            sequence.num_output >= sequence.submission.params.max_tokens
            or len(sequence.tokens) >= self._max_context
        )


def only_token(mask: PackedMask) -> int | None:
    """Return the token of a mask that allows exactly one, else None.

    Raises UnsupportedSchema for a mask that allows none: the grammar has led into a dead end.
    """
    words = np.flatnonzero(mask)
    if words.size == 0:
        raise UnsupportedSchema(
            "The grammar allows no token at this point; it cannot be completed.",
            {"field": "grammar"},
        )
    if words.size > 1:
        return None
    bits = int(mask[words[0]]) & 0xFFFFFFFF
    if bits & (bits - 1):
        return None
    return int(words[0]) * WORD_BITS + bits.bit_length() - 1
