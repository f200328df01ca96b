"""Grammar source -> compiled grammar -> matcher, behind llguidance.

A `Compiler` belongs to one vocabulary and keeps the last compiled grammars by hash; a compiled
grammar is a prototype that is copied for every sequence. Compiling may take milliseconds: call it
off the event loop. Matchers belong to one sequence and are not safe between threads.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from understudy.errors import FailedPrecondition, InvalidArgument, UnsupportedSchema
from understudy.grammar.schema import check_schema
from understudy.grammar.source import GrammarSource

Bitmask = NDArray[np.int32]

MAX_CACHED_GRAMMARS: Final = 256


def count_allowed(mask: Bitmask) -> int:
    """Return how many tokens a packed mask allows; 1 means the grammar leaves no choice."""
    return int(np.bitwise_count(mask.view(np.uint32)).sum())


class Matcher:
    """Follows one sequence through its grammar."""

    def __init__(self, engine: LLMatcher, vocab_size: int) -> None:
        self._engine = engine
        self._num_words = (vocab_size + 31) // 32

    def mask(self, out: Bitmask | None = None) -> Bitmask:
        """Return which tokens may come next: (V/32,) int32, bit i of word w is token 32 w + i.

        Fills `out` where given (same shape, contiguous). In a stopped matcher only
        end-of-sequence is allowed. Raises UnsupportedSchema when the grammar exceeds its limits.
        """
        mask = np.empty(self._num_words, dtype=np.int32) if out is None else out
        if mask.dtype != np.int32 or mask.shape != (self._num_words,):
            raise ValueError(f"A mask is ({self._num_words},) int32, not {mask.shape} {mask.dtype}")
        self._engine.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._engine.is_error():
            raise _too_complex(self._engine)
        return mask

    def accept(self, token_id: int) -> None:
        """Advance by one token; InvalidArgument where the grammar does not allow it."""
        self.accept_many((token_id,))

    def accept_many(self, token_ids: Sequence[int]) -> None:
        """Advance by tokens in order; where one is not allowed, none is taken and it is refused."""
        num_valid = self._engine.validate_tokens(list(token_ids))
        if num_valid < len(token_ids):
            raise InvalidArgument(
                f"Token {token_ids[num_valid]} at position {num_valid} does not fit the grammar.",
                {"field": "grammar"},
            )
        if not self._engine.consume_tokens(list(token_ids)):
            raise _too_complex(self._engine)

    def forced(self) -> list[int]:
        """Return the tokens that must come next, if the grammar leaves no choice; not accepted yet.

        Canonical tokens only: text that is forced but could be tokenised together with what the
        model chooses next stays with the model.
        """
        return list(self._engine.compute_ff_tokens())

    @property
    def is_accepting(self) -> bool:
        """Whether the text so far is a complete sentence of the grammar."""
        return self._engine.is_accepting()

    @property
    def is_stopped(self) -> bool:
        """Whether nothing but end-of-sequence can follow, or it came already."""
        return self._engine.is_stopped()

    def rollback(self, num_tokens: int) -> None:
        """Take back the last accepted tokens."""
        if num_tokens and not self._engine.rollback(num_tokens):
            raise ValueError(f"The matcher holds fewer than {num_tokens} tokens.")

    def fork(self) -> Matcher:
        """Return an independent matcher in the same state."""
        return Matcher(self._engine.deep_copy(), self._num_words * 32)


class CompiledGrammar:
    """A grammar ready for one vocabulary; immutable and safe between threads."""

    def __init__(self, source: GrammarSource, prototype: LLMatcher, vocab_size: int) -> None:
        self.source = source
        self._prototype = prototype
        self._vocab_size = vocab_size

    def matcher(self) -> Matcher:
        """Return a matcher at the beginning."""
        return Matcher(self._prototype.deep_copy(), self._vocab_size)


class Compiler:
    """Compiles grammars for one vocabulary; safe between threads."""

    def __init__(
        self,
        tokenizer_json: str,
        *,
        eos_ids: Sequence[int],
        vocab_size: int | None = None,
        max_cached: int = MAX_CACHED_GRAMMARS,
    ) -> None:
        """Take the text of a `tokenizer.json`; `vocab_size` is the width of the model's logits."""
        try:
            self._tokenizer = LLTokenizer(
                tokenizer_json, n_vocab=vocab_size, eos_token=list(eos_ids)
            )
        except ValueError as error:
            raise FailedPrecondition(
                f"The grammar engine refuses the tokenizer: {error}"
            ) from error
        self._max_cached = max_cached
        self._cache: OrderedDict[bytes, CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def vocab_size(self) -> int:
        """Tokens a mask covers."""
        return self._tokenizer.vocab_size

    def compile(self, source: GrammarSource) -> CompiledGrammar:
        """Return the compiled grammar, from the cache where it was compiled lately.

        Raises UnsupportedSchema for malformed sources and for keywords that cannot be enforced.
        """
        with self._lock:
            cached = self._cache.get(source.hash)
            if cached is not None:
                self._cache.move_to_end(source.hash)
                return cached
        compiled = CompiledGrammar(source, self._prototype(source), self.vocab_size)
        with self._lock:
            self._cache[source.hash] = compiled
            while len(self._cache) > self._max_cached:
                self._cache.popitem(last=False)
        return compiled

    def _prototype(self, source: GrammarSource) -> LLMatcher:
        limits = LLParserLimits(verbose_errors=False)
        engine = LLMatcher(self._tokenizer, _engine_grammar(source), log_level=0, limits=limits)
        if engine.is_error():
            raise UnsupportedSchema(
                f"The {source.kind.replace('_', ' ')} cannot be compiled: "
                f"{_first_line(engine.get_error())}.",
                {"field": "grammar"},
            )
        return engine


def _engine_grammar(source: GrammarSource) -> str:
    if source.kind == "lark":
        return LLMatcher.grammar_from_lark(source.source)
    schema = check_schema(source.source)
    return LLMatcher.grammar_from_json_schema(
        json.dumps(schema),
        overrides={"whitespace_flexible": False, "coerce_one_of": False, "lenient": False},
    )


def _too_complex(engine: LLMatcher) -> UnsupportedSchema:
    return UnsupportedSchema(
        f"The grammar exceeds the engine's limits ({engine.stop_reason()}); simplify it.",
        {"field": "grammar"},
    )


def _first_line(text: str) -> str:
    return text.strip().partition("\n<")[0].replace("\n", " ").rstrip(". ")
