"""llama.cpp: `python -m benchmarks.contestants.llama GGUF NUM_THREADS`, in any Python that has it.

Through the C interface that its own tools use, so that Python adds next to nothing per token.
"""

import ctypes
import sys
import time

import llama_cpp
import numpy as np

from benchmarks.contestants.protocol import answer, prompt

UBATCH = 512
MAX_SEQUENCES = 8
ROOM = {1: 4096, MAX_SEQUENCES: 8192}
"""Tokens that the KV of each context holds."""


class Llama:
    """One model, one context for a lone sequence and one for eight."""

    def __init__(self, path: str, num_threads: int) -> None:
        llama_cpp.llama_log_set(_QUIET, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._num_tokens = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._contexts = {count: self._context(count, num_threads) for count in ROOM}
        self._batch = llama_cpp.llama_batch_init(UBATCH, 0, 1)
        self._first: dict[tuple[int, int], list[int]] = {}
        self._num_prompts = 0

    def decode(self, num_sequences: int, context: int, num_tokens: int) -> float:
        """Time one call a token for all sequences; their prompts are computed once."""
        at = self._contexts[num_sequences]
        memory = llama_cpp.llama_get_memory(at)
        shape = (num_sequences, context)
        if shape not in self._first:
            llama_cpp.llama_memory_clear(memory, True)
            self._first[shape] = [
                self._prompt(at, index, prompt(index, context)) for index in range(num_sequences)
            ]
        chosen = self._first[shape]
        started_s = time.perf_counter()
        for position in range(context, context + num_tokens):
            self._fill([(token, position, index, True) for index, token in enumerate(chosen)])
            self._run(at)
            chosen = [self._best(at, index) for index in range(num_sequences)]
        seconds = time.perf_counter() - started_s
        for index in range(num_sequences):
            llama_cpp.llama_memory_seq_rm(memory, index, context, -1)
        return seconds

    def prefill(self, num_tokens: int) -> float:
        """Time a prompt in pieces of the size that its tools use."""
        self._num_prompts += 1
        at = self._contexts[1]
        self._first = {shape: first for shape, first in self._first.items() if shape[0] != 1}
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(at), True)
        tokens = prompt(1000 + self._num_prompts, num_tokens)
        started_s = time.perf_counter()
        self._prompt(at, 0, tokens)
        return time.perf_counter() - started_s

    def _context(self, num_sequences: int, num_threads: int) -> "llama_cpp.llama_context_p":
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = ROOM[num_sequences], num_sequences
        params.n_batch = params.n_ubatch = UBATCH
        params.n_threads = params.n_threads_batch = num_threads
        return llama_cpp.llama_init_from_model(self._model, params)

    def _prompt(self, at: "llama_cpp.llama_context_p", sequence: int, tokens: list[int]) -> int:
        rows = [(token, index, sequence, False) for index, token in enumerate(tokens)]
        rows[-1] = (*rows[-1][:3], True)
        for start in range(0, len(rows), UBATCH):
            piece = rows[start : start + UBATCH]
            self._fill(piece)
            self._run(at)
        return self._best(at, len(piece) - 1)

    def _fill(self, rows: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, has_logits) in enumerate(rows):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = has_logits

    def _run(self, at: "llama_cpp.llama_context_p") -> None:
        status = llama_cpp.llama_decode(at, self._batch)
        if status != 0:
            sys.exit(f"llama_decode failed with {status}.")

    def _best(self, at: "llama_cpp.llama_context_p", index: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(at, index)
        return int(np.ctypeslib.as_array(logits, (self._num_tokens,)).argmax())


def _swallow(_level: int, _text: bytes, _user: int) -> None:
    """Swallow its log."""


# A callback that C keeps must outlive every call.
_QUIET = llama_cpp.llama_log_callback(_swallow)


def main() -> None:
    """Answer the questions on standard input."""
    path, num_threads = sys.argv[1:]
    version = {"version": llama_cpp.__version__}
    version["system"] = llama_cpp.llama_print_system_info().decode().strip()
    answer(Llama(path, int(num_threads)), version)


if __name__ == "__main__":
    main()
