"""The grammar engine of a worker, which is there from the first grammar on."""

import threading

from services.attention.loading import ServedModel
from understudy.grammar import CompiledGrammar, Compiler, GrammarSource


class GrammarsOnDemand:
    """Compiles grammars for a model's vocabulary; safe between threads.

    The engine keeps some 30 MiB for a vocabulary of 49,000 tokens and takes 0.3 s to build, so that
    a worker whose callers only chat does without. Made once at the start all the same, and let go:
    a vocabulary that it refuses must stop the worker and not the first request with a grammar.
    """

    def __init__(self, served: ServedModel) -> None:
        """Raise FailedPrecondition where the engine refuses the vocabulary."""
        self._vocabulary = served.vocabulary
        self._eos_ids = served.eos_ids
        self._vocab_size = served.model.config.vocab_size
        self._compiler: Compiler | None = None
        self._lock = threading.Lock()
        self._make()

    def compile(self, source: GrammarSource) -> CompiledGrammar:
        """Return the compiled grammar. Raises UnsupportedSchema for what cannot be enforced."""
        with self._lock:
            if self._compiler is None:
                self._compiler = self._make()
        return self._compiler.compile(source)

    def _make(self) -> Compiler:
        return Compiler(self._vocabulary.source, eos_ids=self._eos_ids, vocab_size=self._vocab_size)
