"""Token ids -> text that may be shown: whole characters, nothing from a stop text on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from understudy.text.streaming import Detokeniser
from understudy.text.tokenizer import Tokenizer


class TextStream:
    """Feed the tokens of one answer; take text that can no longer be part of a stop text.

    The text given out depends only on the tokens, not on how they were cut into pushes, so a
    resumed answer continues where the lost stream was.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._detokeniser = Detokeniser(tokenizer)
        self._stops = tuple(stops)
        self._pending = ""
        self.is_stopped = False

    def push(self, token_ids: Iterable[int]) -> str:
        """Return the text these tokens release, possibly empty."""
        return self._release(self._detokeniser.push(token_ids), held=True)

    def finish(self) -> str:
        """Return what was held back at the end."""
        return self._release(self._detokeniser.finish(), held=False)

    def _release(self, text: str, *, held: bool) -> str:
        if self.is_stopped:
            return ""
        self._pending += text
        found = [at for stop in self._stops if (at := self._pending.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            return self._pending[: min(found)]
        keep = (
            max((_overlap(self._pending, stop) for stop in self._stops), default=0) if held else 0
        )
        cut = len(self._pending) - keep
        released, self._pending = self._pending[:cut], self._pending[cut:]
        return released


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
