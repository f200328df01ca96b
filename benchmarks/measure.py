"""What every benchmark shares: interleaved rounds, medians with their spread, and where they ran.

Contestants take turns within each round, so that a busy machine slows all of them alike; what is
reported is the median over rounds and the ratio of medians.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch

ROOT: Final = Path(__file__).resolve().parents[1]
CPU: Final = "cpu"
DEVICES: Final = (CPU, "cuda")
MIN_SAMPLE_S: Final = 0.01
"""Calls are repeated until one sample takes this long."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call over the rounds."""

    median_s: float
    low_s: float
    """The first quartile."""
    high_s: float
    """The third quartile."""
    num_rounds: int

    @property
    def spread(self) -> float:
        """The distance between the quartiles as a share of the median."""
        return (self.high_s - self.low_s) / self.median_s


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and on what a benchmark ran."""

    processor: str
    num_cores: int
    isa: str
    num_threads: int
    python: str
    torch: str
    commit: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the machine can do, measured in the same run."""

    copy_bytes_per_s: float
    """Bytes copied, each read once and written once."""
    read_bytes_per_s: float
    float_macs_per_s: float
    """The best of torch's float32 matrix product."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a table: ours against the best peer."""

    name: str
    ours: Timing
    peers: Mapping[str, Timing]
    ratio: float
    """The best peer's median over ours: above 1 we are faster."""
    share_of_bound: float | None = None
    bound: str = ""


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    num_rounds: int,
    num_warm: int = 2,
    device: str = CPU,
) -> dict[str, Timing]:
    """Time every contestant once per round, in turn, after warm-up rounds that do not count.

    A sample on a GPU ends when the device has done what was asked of it.
    """
    finish = _nothing if device == CPU else torch.cuda.synchronize
    repeats = {name: _repeats(call, finish) for name, call in contestants.items()}
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for index in range(num_warm + num_rounds):
        for name, call in contestants.items():
            seconds = _sample(call, repeats[name], finish)
            if index >= num_warm:
                samples[name].append(seconds)
    return {name: timing(values) for name, values in samples.items()}


def figure(
    name: str,
    timings: Mapping[str, Timing],
    ours: str,
    share_of_bound: float | None = None,
    bound: str = "",
) -> Figure:
    """Return the figure of contestant `ours` against the best of the others."""
    peers = {key: timing for key, timing in timings.items() if key != ours}
    best = min(peer.median_s for peer in peers.values())
    return Figure(name, timings[ours], peers, best / timings[ours].median_s, share_of_bound, bound)


def require_device(device: str) -> None:
    """End the benchmark with a sentence where there is no such device."""
    if device != CPU and not torch.cuda.is_available():
        sys.exit(
            f"There is no GPU that this torch {torch.__version__} can use, so --device {device}"
            " measures nothing; leave it out for the processor."
        )


def machine(isa: str, device: str = CPU) -> Machine:
    """Return where this process runs, and what on."""
    is_cpu = device == CPU
    return Machine(
        processor=_processor() if is_cpu else f"{torch.cuda.get_device_name()}, {_processor()}",
        num_cores=os.cpu_count() or 1,
        isa=isa if is_cpu else "triton",
        num_threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        commit=_commit(),
    )


def bounds(num_rounds: int, device: str = CPU) -> Bounds:
    """Measure copying, reading and float32 products, interleaved, on a device."""
    # More than the caches hold.
    size_bytes = 1 << (27 if device == CPU else 30)
    size = 1024 if device == CPU else 4096
    source = torch.zeros(size_bytes // 8, dtype=torch.int64, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(rows, size, device=device) for rows in (size // 2, size))
    timings = interleaved(
        {
            "copy": lambda: target.copy_(source),
            "read": source.sum,
            "product": lambda: left @ right,
        },
        num_rounds,
        device=device,
    )
    return Bounds(
        copy_bytes_per_s=size_bytes / timings["copy"].low_s,
        read_bytes_per_s=size_bytes / timings["read"].low_s,
        float_macs_per_s=size**3 / 2 / timings["product"].low_s,
    )


def header(where: Machine, limits: Bounds) -> str:
    """Return the lines above a table: without them a figure means nothing."""
    return (
        f"{where.processor}, {where.num_cores} cores, kernels {where.isa}, {where.num_threads}"
        f" threads, torch {where.torch}, commit {where.commit}\n"
        f"copies {limits.copy_bytes_per_s / 1e9:.1f} GB/s, reads"
        f" {limits.read_bytes_per_s / 1e9:.1f} GB/s, float32"
        f" {limits.float_macs_per_s / 1e9:.0f} GMAC/s (torch)"
    )


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as a Markdown table, losses included."""
    lines = [
        "| what | ours | spread | best peer | ratio | of the bound |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for each in figures:
        name, peer = min(each.peers.items(), key=lambda item: item[1].median_s)
        share = "" if each.share_of_bound is None else f"{each.share_of_bound:.0%} {each.bound}"
        lines.append(
            f"| {each.name} | {_duration(each.ours.median_s)} | {each.ours.spread:.0%} |"
            f" {_duration(peer.median_s)} ({name}) | {each.ratio:.2f} | {share} |"
        )
    return "\n".join(lines)


def write_json(path: Path, where: Machine, limits: Bounds, figures: Sequence[Figure]) -> None:
    """Write everything measured."""
    content = {
        "command": sys.argv,
        "machine": asdict(where),
        "bounds": asdict(limits),
        "figures": [asdict(each) for each in figures],
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def _nothing() -> None:
    """Wait for nobody: a processor has done what it was asked when a call returns."""


def _repeats(call: Callable[[], object], finish: Callable[[], None]) -> int:
    call()
    finish()
    return max(1, round(MIN_SAMPLE_S / max(_sample(call, 1, finish), 1e-7)))


def _sample(call: Callable[[], object], repeats: int, finish: Callable[[], None]) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    finish()
    return (time.perf_counter() - started) / repeats


def timing(samples: Sequence[float]) -> Timing:
    """Return the median and the quartiles of some seconds."""
    if len(samples) == 1:
        return Timing(samples[0], samples[0], samples[0], 1)
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, low, high, len(samples))


def _duration(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
