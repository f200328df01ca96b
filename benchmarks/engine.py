"""The engine against its peers: `python -m benchmarks.engine [--quick] [--json FILE]`.

Every contestant runs the same SmolLM2-135M GGUF in a process of its own and waits while the others
are asked; they take turns within each round, so that a busy machine slows all of them alike. Ours
is the loop body of an attention worker, in both of its arithmetics. llama.cpp is measured where
`llama_cpp` can be imported, in this Python or in that of --llama-python.
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
from benchmarks.engine_memory import Memory, measure_memory
from benchmarks.measure import Bounds, Timing, bounds, header, machine, timing
from understudy.model.locate import locate_model
from understudy_kernels import load

OURS: Final = ("exact", "fast")
LLAMA: Final = "llama.cpp"
INSTALL_LLAMA: Final = "CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary :all: llama-cpp-python"
INT8_SPEEDUP: Final = {"avx2": 2.0, "avx512": 4.0}
"""Products of int8 a cycle over those of float32: two instructions for 32 beside 8, one for 64
beside 16."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One question to all, and the tokens by which its seconds are divided."""

    name: str
    question: Mapping[str, object]
    num_tokens: int
    num_sequences: int = 0
    """Sequences that decode; 0 for a prompt."""

    def least_s(self, facts: Mapping[str, float], limits: Bounds, speedup: float) -> float:
        """Return the seconds that memory (decode) or arithmetic (prompt) would need at least."""
        if self.num_sequences:
            context = float(str(self.question["context"])) + self.num_tokens / 2
            kv_bytes = self.num_sequences * context * facts["kv_bytes_per_token"]
            num_steps = self.num_tokens / self.num_sequences
            return num_steps * (facts["weight_bytes"] + kv_bytes) / limits.copy_bytes_per_s
        attention = self.num_tokens**2 / 2 * facts["attention_macs"]
        layers = self.num_tokens * facts["layer_macs"] / speedup
        return (layers + attention + facts["head_macs"] / speedup) / limits.float_macs_per_s


def scenarios(*, is_quick: bool) -> list[Scenario]:
    """Return what is asked."""
    steps = 16 if is_quick else 32

    def decode(num_sequences: int, context: int) -> Scenario:
        question = {
            "kind": "decode",
            "num_sequences": num_sequences,
            "context": context,
            "num_tokens": steps,
        }
        plural = "s" if num_sequences > 1 else ""
        name = f"decode, {num_sequences} sequence{plural} of {context} tokens"
        return Scenario(name, question, steps * num_sequences, num_sequences)

    def prefill(num_tokens: int) -> Scenario:
        question = {"kind": "prefill", "num_tokens": num_tokens}
        return Scenario(f"prompt of {num_tokens} tokens", question, num_tokens)

    short = [decode(1, 512), decode(8, 512), prefill(512)]
    return short if is_quick else [*short, prefill(2048)]


def commands(num_threads: int, budget: int, llama_python: str) -> dict[str, list[str]]:
    """Return how each contestant is started."""
    module = [sys.executable, "-m", "benchmarks.contestants"]
    ours = {
        name: [*module[:2], f"{module[2]}.ours", name, str(num_threads), str(budget)]
        for name in OURS
    }
    theirs = {
        f"transformers {dtype}": [*module[:2], f"{module[2]}.huggingface", dtype, str(num_threads)]
        for dtype in ("float32", "bfloat16")
    }
    path = str(locate_model("smollm2"))
    llama = [llama_python, "-m", f"{module[2]}.llama", path, str(num_threads)]
    return {**ours, **theirs, **({LLAMA: llama} if has_llama(llama_python) else {})}


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
    def best_peer(self) -> str:
        """The fastest of the others."""
        peers = [name for name in self.timings if name not in OURS]
        return min(peers, key=lambda name: self.timings[name].median_s)

    def ratio(self, ours: str) -> float:
        """Return how many times the best peer's tokens/s one of ours makes."""
        return self.timings[self.best_peer].median_s / self.timings[ours].median_s


def measure(
    contestants: Mapping[str, ContestantProcess],
    asked: Sequence[Scenario],
    limits: Bounds,
    num_rounds: int,
) -> list[Result]:
    """Ask everybody in turn; the first round of each scenario only warms up."""
    speedup = INT8_SPEEDUP.get(load().isa, 1.0)
    results = []
    for scenario in asked:
        samples: dict[str, list[float]] = {name: [] for name in contestants}
        for index in range(num_rounds + 1):
            for name, contestant in contestants.items():
                seconds = contestant.ask(**scenario.question)
                if index:
                    samples[name].append(seconds)
        least = {
            "exact": scenario.least_s(contestants["exact"].facts, limits, 1.0),
            "fast": scenario.least_s(contestants["fast"].facts, limits, speedup),
        }
        timings = {name: timing(values) for name, values in samples.items()}
        results.append(Result(scenario.name, scenario.num_tokens, timings, least))
        medians = ", ".join(f"{name} {each.median_s:.3f} s" for name, each in timings.items())
        print(f"{scenario.name}: {medians}", file=sys.stderr, flush=True)
    return results


def table(results: Sequence[Result]) -> str:
    """Return tokens a second of everybody, and ratios; losses stand where they fall."""
    names = list(results[0].timings)
    ends = [f"{name} / best peer" for name in OURS] + [f"{name}, of the bound" for name in OURS]
    lines = [_row(["tokens/s (spread)", *names, *ends]), _row(["---"] * (1 + len(names) + 4))]
    for each in results:
        rates = [
            f"{each.num_tokens / each.timings[name].median_s:.1f} ({each.timings[name].spread:.0%})"
            for name in names
        ]
        ratios = [f"{each.ratio(name):.2f}" for name in OURS]
        shares = [f"{each.least_s[name] / each.timings[name].median_s:.0%}" for name in OURS]
        lines.append(_row([each.scenario, *rates, *ratios, *shares]))
    return "\n".join(lines)


def memory_lines(memory: Memory) -> str:
    """Return the memory of a worker against its bound."""
    return (
        f"Anonymous memory of a worker above `import torch`: {memory.above_mib:.0f} MiB; 1.3 x the"
        f" GGUF file + KV is {memory.allowed_mib:.0f} MiB (file {memory.file_mib:.0f}, KV"
        f" {memory.kv_mib:.0f}, `import torch` {memory.bare_mib:.0f})."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write everything measured where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds and tokens, no long prompt"
    )
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--budget", type=int, default=256, help="our positions per step, at most")
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--llama-python", default=sys.executable, help="a Python with llama_cpp")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    num_rounds = 2 if given.quick else 5
    where, limits = machine(load().isa), bounds(5 if given.quick else 15)
    print(header(where, limits) + "\n")
    table_of = commands(given.threads, given.budget, given.llama_python)
    if LLAMA not in table_of:
        print(f"llama.cpp is not measured: {given.llama_python} cannot import llama_cpp. Install")
        print(f"it with `{INSTALL_LLAMA}` and name that Python with --llama-python.\n")
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(ContestantProcess(command, given.threads))
            for name, command in table_of.items()
        }
        asked = [each for each in scenarios(is_quick=given.quick) if given.only in each.name]
        results = measure(running, asked, limits, num_rounds)
    print(table(results) + "\n")
    memory = measure_memory()
    print(memory_lines(memory))
    if given.json:
        content = {
            "command": sys.argv,
            "machine": asdict(where),
            "bounds": asdict(limits),
            "results": [asdict(each) for each in results],
            "memory": asdict(memory),
        }
        given.json.write_text(json.dumps(content, indent=2) + "\n")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
