"""What one worker can do: costs of an engine step, measured on this repository's engine."""

import random
import time
from dataclasses import dataclass
from typing import Final

from services.attention.filling import shared_budget

DECODING: Final = (1, 8, 16)
"""Sequences that decode while steps are timed."""
BUDGETS: Final = (16, 64, 192)
"""Positions that a step computes at most while it is timed."""
STEPS: Final = 6


@dataclass(frozen=True, slots=True)
class WorkerModel:
    """Costs and limits of one worker."""

    fixed_s: float
    """Seconds of a step that computes next to nothing."""
    prefill_s: float
    """Seconds that a prompt token adds to a step."""
    decode_s: float
    """Seconds that a decoding sequence adds to a step."""
    max_sequences: int = 32
    """Default of the attention worker's settings."""
    token_budget: int = 256
    """Likewise: positions of a step in which nobody decodes."""
    mixed_token_budget: int = 12
    """Likewise: least positions of a step in which somebody does."""
    doubling_context: int = 512
    """Context at which a token of a prompt takes two of them (decision 0006), of SmolLM2."""
    kv_tokens: int = 131_072
    """Tokens whose KV fits at once."""

    def budget(self, decoding: int, backlog: int) -> int:
        """Return the positions of a step beside `backlog` prompt tokens, as the engine does."""
        if not decoding:
            return self.token_budget
        return shared_budget(self.token_budget, self.mixed_token_budget, decoding, backlog)

    def chunk(self, prompt: int, decoding: int, backlog: int) -> float:
        """Return the tokens of a prompt that a step reads, the mean over its length."""
        room = max(self.budget(decoding, backlog) - decoding, 1)
        if not decoding:
            return float(room)
        return max(room / (1 + prompt / 2 / self.doubling_context), 1.0)

    def step_s(self, prefill: float, decoding: int) -> float:
        """Return how long a step takes."""
        return self.fixed_s + prefill * self.prefill_s + decoding * self.decode_s


MEASURED: Final = WorkerModel(fixed_s=0.0115, prefill_s=0.0029, decode_s=0.0035)
"""SmolLM2-135M (Q4_1) on one core of a shared cloud machine, 2026-11:
`python -m benchmarks.autoscale --measure`. The simulation rests on the shape, fixed cost against
prompt tokens against output tokens; the pace is this core's, and the objectives fit it."""


def measure() -> WorkerModel:
    """Time real engine steps on one core and fit the model by least squares.

    Processor time, not the clock: others may use the machine meanwhile.
    """
    import numpy as np
    import torch

    from benchmarks.cores import BLOCK_SIZE, make_core, smollm2, submission
    from services.attention.sequence import Priority

    torch.set_num_threads(1)
    model, rng = smollm2(), random.Random(3)  # noqa: S311

    def tokens(num: int) -> list[int]:
        return [rng.randrange(3, model.vocab_size) for _ in range(num)]

    rows: list[tuple[float, float, float]] = []
    seconds: list[float] = []
    for budget in BUDGETS:
        for decoding in DECODING:
            core, scheduler = make_core(
                model, num_blocks=4096 // BLOCK_SIZE * 4, token_budget=budget, max_sequences=32
            )
            for index in range(decoding):
                core.submit(submission(index, tokens(32), 400, Priority.STANDARD))
            while any(sequence.num_output < 2 for sequence in scheduler.sequences()):
                core.step()
            for num_prompts in (0, 1):
                if num_prompts:
                    core.submit(submission(99, tokens(1900), 2, Priority.STANDARD))
                core.step()
                for _ in range(STEPS):
                    started_s = time.process_time()
                    core.step()
                    seconds.append(time.process_time() - started_s)
                    core.take_outputs()
                    rows.append((1.0, num_prompts * max(budget - decoding, 1), decoding))
    weights = 1 / np.array(seconds)  # relative errors: long steps are no better known
    found, *_ = np.linalg.lstsq(
        np.array(rows) * weights[:, None], np.array(seconds) * weights, rcond=None
    )
    fixed_s, prefill_s, decode_s = (max(float(one), 0.0) for one in found)
    return WorkerModel(fixed_s, prefill_s, decode_s)
