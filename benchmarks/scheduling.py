"""What the scheduler is worth: `python -m benchmarks.scheduling [--quick] [--part gaps|batch]`.

(a) Time between tokens of running sequences while a 2,000-token prompt arrives, with prompts cut
into chunks and whole, against the same sequences left alone for as many steps in the same round.
(b) `batch` priority against first-come order on 200 requests over 20 shared prefixes, with KV for
a few prefixes at a time: throughput, positions computed, KV peak.

Both drive a real engine core in process; arms alternate within each round, medians are reported.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final, get_args

import torch

from benchmarks.cores import BLOCK_SIZE, Model, make_core, small, smollm2, submission
from benchmarks.measure import bounds, header, machine
from services.attention.core import EngineCore
from services.attention.scheduler import Scheduler
from services.attention.sequence import Priority
from understudy.model.decoder import Compute
from understudy_kernels import load

WHOLE: Final = 1 << 20
"""A budget that no prompt exceeds: chunking is off."""
PROMPT_TOKENS: Final = 2000
LEAST_QUIET_STEPS: Final = 16
TOKEN_BUDGET: Final = 256
PARTS: Final = ("gaps", "batch")
BUDGETS: Final = (8, 12, 16, 32, 64, 256, WHOLE)
QUICK_BUDGETS: Final = (8, 12, WHOLE)


@dataclass(frozen=True, slots=True)
class Load:
    """The requests of (b) and the worker that serves them."""

    num_requests: int = 200
    num_prefixes: int = 20
    prefix_tokens: int = 256
    own_tokens: int = 24
    output_tokens: int = 16
    num_blocks: int = 176
    """Blocks for about ten prefixes, their tails and outputs."""
    max_sequences: int = 16
    token_budget: int = TOKEN_BUDGET


@dataclass(frozen=True, slots=True)
class Gaps:
    """Seconds between tokens of the running sequences in one round of one budget."""

    quiet_median_s: float
    p50_s: float
    p99_s: float
    first_token_s: float

    @property
    def ratio(self) -> float:
        """p99 beside the prompt over the median of the quiet run."""
        return self.p99_s / self.quiet_median_s


def measure_gaps(model: Model, mixed_budget: int, *, num_running: int) -> Gaps:
    """Let sequences run beside a long prompt to its first token, then as many steps without it.

    Every running sequence gets a token in every step, so a gap is the duration of a step; and in
    the quiet run it passes through the same lengths.
    """
    core, scheduler = running_core(model, mixed_budget, num_running)
    long_prompt = random_tokens(model, PROMPT_TOKENS, seed=6)
    core.submit(submission(num_running, long_prompt, 2, Priority.STANDARD))
    newcomer = scheduler.sequences()[-1]
    gaps: list[float] = []
    while newcomer.num_output == 0:
        gaps.append(timed_step(core))
    core, _ = running_core(model, mixed_budget, num_running)
    quiet = [timed_step(core) for _ in range(max(len(gaps), LEAST_QUIET_STEPS))]
    ordered = sorted(gaps)
    return Gaps(
        quiet_median_s=median(quiet),
        p50_s=median(gaps),
        p99_s=ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        first_token_s=sum(gaps),
    )


def running_core(model: Model, mixed_budget: int, num_running: int) -> tuple[EngineCore, Scheduler]:
    """Return an engine that decodes sequences of 64 prompt tokens, and its scheduler."""
    core, scheduler = make_core(
        model,
        num_blocks=(PROMPT_TOKENS + num_running * 2400) // BLOCK_SIZE,
        token_budget=max(mixed_budget, TOKEN_BUDGET),
        mixed_budget=mixed_budget,
        max_sequences=num_running + 1,
    )
    for index in range(num_running):
        tokens = random_tokens(model, 64, seed=100 + index)
        core.submit(submission(index, tokens, PROMPT_TOKENS, Priority.STANDARD))
    while any(sequence.num_output < 4 for sequence in scheduler.sequences()):
        core.step()
    return core, scheduler


def random_tokens(model: Model, count: int, seed: int) -> list[int]:
    """Return a prompt that shares nothing with any other."""
    rng = random.Random(seed)  # noqa: S311
    return [rng.randrange(3, model.vocab_size) for _ in range(count)]


def timed_step(core: EngineCore) -> float:
    """Run one step; return its seconds."""
    started_s = time.perf_counter()
    core.step()
    core.take_outputs()
    return time.perf_counter() - started_s


@dataclass(frozen=True, slots=True)
class BatchRun:
    """One arm of (b) in one round."""

    duration_s: float
    tokens_per_s: float
    """Prompt and output tokens served, computed or reused, a second."""
    computed_positions: int
    running_blocks: int
    """Most blocks that running sequences held between them."""
    used_blocks: int
    """The same with the blocks that were held for waiting sequences."""


def measure_batch(model: Model, load: Load, priority: Priority, seed: int) -> BatchRun:
    """Serve all requests of a load, shuffled, with one priority."""
    rng = random.Random(seed)  # noqa: S311
    prefixes = [
        [rng.randrange(3, model.vocab_size) for _ in range(load.prefix_tokens)]
        for _ in range(load.num_prefixes)
    ]
    prompts = [
        prefixes[index % load.num_prefixes]
        + [rng.randrange(3, model.vocab_size) for _ in range(load.own_tokens)]
        for index in range(load.num_requests)
    ]
    rng.shuffle(prompts)
    core, scheduler = make_core(
        model,
        num_blocks=load.num_blocks,
        token_budget=load.token_budget,
        max_sequences=load.max_sequences,
    )
    started_s = time.perf_counter()
    for index, prompt in enumerate(prompts):
        core.submit(submission(index, prompt, load.output_tokens, priority))
    computed, running, used = 0, 0, 0
    while core.step():
        now_used = load.num_blocks - scheduler.blocks.num_free
        used = max(used, now_used)
        running = max(running, len({b for s in scheduler.sequences() for b in s.blocks}))
        for output in core.take_outputs().values():
            computed += sum(end.computed_positions for end in output.finished)
    duration_s = time.perf_counter() - started_s
    core.check_integrity()
    num_served = sum(len(prompt) + load.output_tokens for prompt in prompts)
    return BatchRun(duration_s, num_served / duration_s, computed, running, used)


def summary(runs: Sequence[float]) -> str:
    """Return the median, and the range where there are several."""
    if len(runs) == 1:
        return f"{runs[0]:.3g}"
    return f"{median(runs):.3g} ({min(runs):.3g} to {max(runs):.3g})"


def print_row(*cells: str) -> None:
    """Print one row of a table."""
    print("|", " | ".join(cells), "|")


def bench_gaps(model: Model, budgets: Sequence[int], num_rounds: int, num_running: int) -> object:
    """Print (a); return its rounds by budget."""
    rounds: dict[int, list[Gaps]] = {budget: [] for budget in budgets}
    for _ in range(num_rounds):
        for budget in budgets:
            rounds[budget].append(measure_gaps(model, budget, num_running=num_running))
    print(f"\n(a) {model.name}: {num_running} running sequences, a {PROMPT_TOKENS}-token prompt")
    print_row(
        "mixed budget", "quiet median s", "p50 s", "p99 s", "p99 / quiet median", "first token s"
    )
    for budget, runs in rounds.items():
        print_row(
            "off (whole prompt)" if budget == WHOLE else str(budget),
            summary([run.quiet_median_s for run in runs]),
            summary([run.p50_s for run in runs]),
            summary([run.p99_s for run in runs]),
            summary([run.ratio for run in runs]),
            summary([run.first_token_s for run in runs]),
        )
    return {str(budget): [asdict(run) for run in runs] for budget, runs in rounds.items()}


def bench_batch(model: Model, load: Load, num_rounds: int) -> object:
    """Print (b); return its rounds by arm."""
    arms = {"first come": Priority.STANDARD, "batch": Priority.BATCH}
    rounds: dict[str, list[BatchRun]] = {arm: [] for arm in arms}
    for seed in range(num_rounds):
        for arm, priority in arms.items():
            rounds[arm].append(measure_batch(model, load, priority, seed))
    print(
        f"\n(b) {model.name}: {load.num_requests} requests over {load.num_prefixes} prefixes of "
        f"{load.prefix_tokens} tokens, {load.num_blocks} blocks of {BLOCK_SIZE}"
    )
    print_row("order", "tokens/s", "positions computed", "peak blocks, running", "with held ones")
    for arm, runs in rounds.items():
        print_row(
            arm,
            summary([run.tokens_per_s for run in runs]),
            summary([run.computed_positions for run in runs]),
            summary([run.running_blocks for run in runs]),
            summary([run.used_blocks for run in runs]),
        )
    pairs = zip(rounds["batch"], rounds["first come"], strict=True)
    ratios = [batch.tokens_per_s / first.tokens_per_s for batch, first in pairs]
    print("Throughput, batch over first come:", summary(ratios))
    return {arm: [asdict(run) for run in runs] for arm, runs in rounds.items()}


def read_budgets(given: str) -> tuple[int, ...]:
    """Return the budgets of a list such as `8,12,whole`; ArgumentTypeError naming a bad one."""
    budgets = []
    for word in given.split(","):
        if word != "whole" and not (word.isascii() and word.isdigit() and int(word)):
            raise argparse.ArgumentTypeError(f"{word!r} is neither a positive number nor `whole`")
        budgets.append(WHOLE if word == "whole" else int(word))
    return tuple(dict.fromkeys(budgets))


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what is to be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scheduling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round, four sequences, a small model in (b)"
    )
    parser.add_argument("--part", choices=PARTS, help="only (a), or only (b); both by default")
    parser.add_argument(
        "--budgets",
        type=read_budgets,
        help="positions of a mixed step to compare in (a), such as 8,12,whole",
    )
    parser.add_argument("--rounds", type=int, help="rounds (5; 1 with --quick)")
    parser.add_argument(
        "--compute", choices=get_args(Compute), default="exact", help="arithmetic of SmolLM2"
    )
    parser.add_argument("--threads", type=int, default=0, help="torch's threads (default: its own)")
    parser.add_argument("--json", type=Path, help="write all rounds to this file")
    wanted = parser.parse_args(arguments)
    wanted.rounds = wanted.rounds or (1 if wanted.quick else 5)
    wanted.budgets = wanted.budgets or (QUICK_BUDGETS if wanted.quick else BUDGETS)
    return wanted


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that are wanted."""
    wanted = read_arguments(arguments)
    if wanted.threads:
        torch.set_num_threads(wanted.threads)
    where, limits = machine(load().isa), bounds(5)
    print(header(where, limits))
    found: dict[str, object] = {"machine": asdict(where), "bounds": asdict(limits)}
    teacher = None
    if wanted.part != "batch" or not wanted.quick:
        teacher = smollm2(wanted.compute)
        print(f"arithmetic: {teacher.compute}, {wanted.rounds} rounds")
    if wanted.part != "batch":
        assert teacher is not None, "it was loaded above"
        if not wanted.quick:  # in a quick run the short prompts of each arm have to warm it up
            measure_gaps(teacher, 256, num_running=8)
        num_running = 4 if wanted.quick else 8
        found["gaps"] = bench_gaps(teacher, wanted.budgets, wanted.rounds, num_running)
    if wanted.part != "gaps":
        chosen = small() if teacher is None or wanted.quick else teacher
        measure_batch(chosen, replace(Load(), num_requests=20), Priority.STANDARD, 0)  # warm-up
        found["batch"] = bench_batch(chosen, Load(), wanted.rounds)
    if wanted.json:
        wanted.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
