"""The engine against its peers: `python -m benchmarks.engine [--quick] [--contestants NAMES]`.

Every contestant runs the same SmolLM2-135M GGUF in a process of its own and waits while the others
are asked; they take turns within each round, so that a busy machine slows all of them alike. Ours
is the loop body of an attention worker, in both of its arithmetics. llama.cpp is measured where
`llama_cpp` can be imported, in this Python or in that of --llama-python. At the end the memory of a
worker is looked at, unless --no-memory.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch

from benchmarks.contestants.process import ContestantProcess
from benchmarks.engine_memory import measure_memory, memory_table
from benchmarks.engine_scenarios import Scenario, scenarios
from benchmarks.measure import (
    CPU,
    DEVICES,
    Bounds,
    Timing,
    bounds,
    header,
    machine,
    require_device,
    timing,
)
from understudy.model.locate import locate_model
from understudy_kernels import load

OURS: Final = ("exact", "fast")
PEERS: Final = ("transformers float32", "transformers bfloat16")
LLAMA: Final = "llama.cpp"
EVERYBODY: Final = (*OURS, *PEERS, LLAMA)
ROUNDS: Final = 5
QUICK_ROUNDS: Final = 2
INSTALL_LLAMA: Final = "CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary :all: llama-cpp-python"
INT8_SPEEDUP: Final = {"avx2": 2.0, "avx512": 4.0}
"""Products of int8 a cycle over those of float32: two instructions for 32 beside 8, one for 64
beside 16."""


def commands(
    wanted: Sequence[str], num_threads: int, budget: int, llama_python: str, device: str = CPU
) -> dict[str, list[str]]:
    """Return how each of the wanted contestants is started, in the order of `EVERYBODY`."""
    ours, huggingface, llama = (
        f"benchmarks.contestants.{name}" for name in ("ours", "huggingface", "llama")
    )
    every = {
        name: [sys.executable, "-m", ours, name, str(num_threads), str(budget), device]
        for name in OURS
    }
    for name in PEERS:
        dtype = name.split()[1]
        every[name] = [sys.executable, "-m", huggingface, dtype, str(num_threads), device]
    if LLAMA in wanted:
        path = str(locate_model("smollm2"))
        every[LLAMA] = [llama_python, "-m", llama, path, str(num_threads)]
    return {name: command for name, command in every.items() if name in wanted}


def has_llama(python: str) -> bool:
    """Say whether that Python can import llama.cpp."""
    found = subprocess.run(  # noqa: S603 - the user's own Python
        [python, "-c", "import llama_cpp"], capture_output=True, check=False
    )
    return found.returncode == 0


@dataclass(frozen=True, slots=True)
class Result:
    """All contestants in one scenario."""

    scenario: str
    num_tokens: int
    timings: Mapping[str, Timing]
    least_s: Mapping[str, float]
    """The bound of each of ours."""

    @property
    def best_peer(self) -> str | None:
        """The fastest of the others; None where only we were asked."""
        peers = [name for name in self.timings if name not in OURS]
        return min(peers, key=lambda name: self.timings[name].median_s) if peers else None

    def ratio(self, ours: str) -> float | None:
        """Return how many times the best peer's tokens/s one of ours makes."""
        if self.best_peer is None:
            return None
        return self.timings[self.best_peer].median_s / self.timings[ours].median_s


def measure(
    contestants: Mapping[str, ContestantProcess],
    asked: Sequence[Scenario],
    limits: Bounds,
    num_rounds: int,
    speedup: float,
) -> list[Result]:
    """Ask everybody in turn; the first round of each scenario only warms up.

    `speedup` is what `fast` multiplies beside float32, for its bound.
    """
    results = []
    for scenario in asked:
        samples: dict[str, list[float]] = {name: [] for name in contestants}
        for index in range(num_rounds + 1):
            for name, contestant in contestants.items():
                seconds = contestant.ask(**scenario.question)
                if index:
                    samples[name].append(seconds)
        least = {
            name: scenario.least_s(contestants[name].facts, limits, faster)
            for name, faster in (("exact", 1.0), ("fast", speedup))
            if name in contestants
        }
        timings = {name: timing(values) for name, values in samples.items()}
        results.append(Result(scenario.name, scenario.num_tokens, timings, least))
        medians = ", ".join(f"{name} {each.median_s:.3f} s" for name, each in timings.items())
        print(f"{scenario.name}: {medians}", file=sys.stderr, flush=True)
    return results


def table(results: Sequence[Result]) -> str:
    """Return tokens a second of everybody, and ratios; losses stand where they fall."""
    names, ours = list(results[0].timings), list(results[0].least_s)
    has_peers = results[0].best_peer is not None
    ends = [f"{name} / best peer" for name in ours if has_peers]
    ends += [f"{name}, of the bound" for name in ours]
    heads = ["tokens/s (spread)", *names, *ends]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for each in results:
        rates = [
            f"{each.num_tokens / each.timings[name].median_s:.1f} ({each.timings[name].spread:.0%})"
            for name in names
        ]
        ratios = [f"{ratio:.2f}" for name in ours if (ratio := each.ratio(name)) is not None]
        shares = [f"{each.least_s[name] / each.timings[name].median_s:.0%}" for name in ours]
        lines.append(_row([each.scenario, *rates, *ratios, *shares]))
    return "\n".join(lines)


def read_contestants(given: str) -> tuple[str, ...]:
    """Return the names of a list such as `exact,llama.cpp`; ArgumentTypeError for unknown ones."""
    names = tuple(dict.fromkeys(name.strip() for name in given.split(",")))
    for name in names:
        if name not in EVERYBODY:
            known = ", ".join(EVERYBODY)
            raise argparse.ArgumentTypeError(f"{name!r} is nobody; there are {known}")
    return names


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what is to be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer rounds and tokens, no long prompt")
    add(
        "--contestants",
        type=read_contestants,
        default=EVERYBODY,
        metavar="NAMES",
        help=f"those to compare, with commas between them: {', '.join(EVERYBODY)}",
    )
    add("--rounds", type=int, help=f"rounds after the warm one ({ROUNDS}; {QUICK_ROUNDS} if quick)")
    add("--only", default="", help="scenarios whose name contains this")
    add("--device", choices=DEVICES, default=CPU, help="cuda: ours and transformers on a GPU")
    add("--threads", type=int, default=os.cpu_count() or 1, help="threads of each contestant")
    add("--budget", type=int, default=256, help="our positions per step, at most")
    add("--llama-python", default=sys.executable, help="a Python with llama_cpp")
    add("--no-memory", action="store_true", help="leave out the memory of a worker")
    add("--json", type=Path, help="write everything measured to this file")
    given = parser.parse_args(arguments)
    given.rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS)
    given.scenarios = [each for each in scenarios(is_quick=given.quick) if given.only in each.name]
    if not given.scenarios:
        parser.error(f"no scenario's name contains {given.only!r}")
    require_device(given.device)
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write everything measured where a file is named."""
    given = read_arguments(arguments)
    torch.set_num_threads(given.threads)
    where = machine(load().isa, given.device)
    limits = bounds(5 if given.quick else 15, given.device)
    print(f"{header(where, limits)}\n{given.rounds} rounds\n")
    wanted = list(given.contestants)
    if LLAMA in wanted and given.device != CPU:
        wanted.remove(LLAMA)
        print("llama.cpp is not measured: it is built for the processor.\n")
    if LLAMA in wanted and not has_llama(given.llama_python):
        wanted.remove(LLAMA)
        print(f"llama.cpp is not measured: {given.llama_python} cannot import llama_cpp. Install")
        print(f"it with `{INSTALL_LLAMA}` and name that Python with --llama-python.\n")
    if not wanted:
        sys.exit("Nobody is left to be measured.")
    with ExitStack() as stack:
        started = commands(wanted, given.threads, given.budget, given.llama_python, given.device)
        running = {
            name: stack.enter_context(ContestantProcess(command, given.threads))
            for name, command in started.items()
        }
        results = measure(
            running, given.scenarios, limits, given.rounds, INT8_SPEEDUP.get(where.isa, 1.0)
        )
    print(table(results) + "\n")
    has_memory = not given.no_memory and given.device == CPU
    memory = measure_memory() if has_memory else None
    if memory is not None:
        print(memory_table(memory))
    if given.json:
        content = {
            "command": sys.argv,
            "machine": asdict(where),
            "bounds": asdict(limits),
            "results": [asdict(each) for each in results],
            "memory": None if memory is None else asdict(memory),
        }
        given.json.write_text(json.dumps(content, indent=2) + "\n")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
