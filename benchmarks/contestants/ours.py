"""Our engine: `python -m benchmarks.contestants.ours COMPUTE THREADS TOKEN_BUDGET DEVICE`.

What is timed is the whole loop body of an attention worker: scheduling, forward, sampling,
bookkeeping. What lies around it, the thread and the network, is not.
"""

import sys
import time
from typing import get_args

import torch

from benchmarks.contestants.protocol import answer, prompt
from benchmarks.cores import BLOCK_SIZE, make_core, smollm2, submission
from services.attention.core import EngineCore
from services.attention.sequence import Priority
from understudy.model.decoder import Compute
from understudy.model.kv_planes import block_bytes
from understudy.model.placing import Device

MAX_SEQUENCES = 8
ROOM = 12_288
"""Tokens that the KV holds: eight sequences and a long prompt, and as much from earlier rounds."""


class Ours:
    """An engine core over SmolLM2; prompts of sequences that decode stay in its prefix cache."""

    def __init__(self, compute: Compute, token_budget: int, device: Device) -> None:
        self._model = smollm2(compute, device)
        self._core, self._scheduler = make_core(
            self._model,
            num_blocks=ROOM // BLOCK_SIZE,
            token_budget=token_budget,
            max_sequences=MAX_SEQUENCES,
        )
        self._num_started = 0

    def decode(self, num_sequences: int, context: int, num_tokens: int) -> float:
        """Time the steps after every sequence has its first token."""
        for index in range(num_sequences):
            self._start(prompt(index, context), num_tokens + num_sequences)
        while any(sequence.num_output == 0 for sequence in self._scheduler.sequences()):
            _step(self._core)
        started_s = time.perf_counter()
        for _ in range(num_tokens):
            _step(self._core)
        seconds = time.perf_counter() - started_s
        self._end_all()
        return seconds

    def prefill(self, num_tokens: int) -> float:
        """Time the steps of a prompt that was never seen before."""
        self._start(prompt(1000 + self._num_started, num_tokens), 1)
        started_s = time.perf_counter()
        while _step(self._core):
            pass
        return time.perf_counter() - started_s

    def facts(self) -> dict[str, object]:
        """Return what a token costs, for the bounds."""
        config = self._model.decoder.config
        head_macs = config.vocab_size * config.hidden_size
        return {
            "compute": self._model.compute,
            "weight_bytes": self._model.weight_bytes,
            "kv_bytes_per_token": block_bytes(config, 1, self._model.kv_dtype),
            "layer_macs": config.cost_per_position() - head_macs,
            "head_macs": head_macs,
            "attention_macs": config.cost_per_seen(),
        }

    def _start(self, tokens: list[int], max_tokens: int) -> None:
        self._num_started += 1
        self._core.submit(submission(self._num_started, tokens, max_tokens, Priority.STANDARD))

    def _end_all(self) -> None:
        for sequence in list(self._scheduler.sequences()):
            self._core.cancel(sequence.key)
        self._core.take_outputs()


def _step(core: EngineCore) -> bool:
    has_computed = core.step()
    core.take_outputs()
    core.stats()
    return has_computed


def main() -> None:
    """Answer the questions on standard input."""
    wanted, num_threads, token_budget, place = sys.argv[1:]
    compute = next(each for each in get_args(Compute) if each == wanted)
    device = next(each for each in get_args(Device) if each == place)
    torch.set_num_threads(int(num_threads))
    ours = Ours(compute, int(token_budget), device)
    answer(ours, ours.facts())


if __name__ == "__main__":
    main()
