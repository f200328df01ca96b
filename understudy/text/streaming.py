"""Turn a stream of token ids into text that never splits a character."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from understudy.text.tokenizer import Tokenizer


class Detokeniser:
    """Feed token ids, take the text they complete; bytes of an unfinished character wait."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Iterable[int]) -> str:
        """Return the text that these tokens complete, possibly empty."""
        return self._decoder.decode(b"".join(map(self._tokenizer.token_bytes, token_ids)))

    def finish(self) -> str:
        """Return what was pending at the end; an unfinished character becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)
