"""Request traces: arrival, prompt tokens, output tokens."""

import csv
import gzip
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

AZURE_CONV: Final = Path(__file__).parent / "azure_llm_2023_conv.csv.gz"
"""19,366 requests of a conversation service (Azure Public Dataset, CC-BY-4.0; see README.md)."""
MAX_REQUESTS: Final = 5_000_000
MICROSECONDS: Final = 26
"""Characters of a timestamp up to its microseconds; the trace has a seventh digit."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a trace."""

    at_s: float
    """Arrival after the start of the trace."""
    prompt: int
    output: int


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival."""

    name: str
    requests: tuple[Request, ...]

    @property
    def half_s(self) -> float:
        """Middle of the trace: policies are tuned before it and scored after it."""
        return self.requests[-1].at_s / 2

    def first_half(self) -> "Trace":
        """Return the requests that policies may be tuned on."""
        requests = tuple(one for one in self.requests if one.at_s < self.half_s)
        return replace(self, requests=requests)


def read_trace(path: Path) -> Trace:
    """Read a CSV with TIMESTAMP, ContextTokens and GeneratedTokens, gzipped or not.

    Raises ValueError naming the row that is malformed.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    requests: list[Request] = []
    with opened(path, "rt", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), start=2):
            try:
                at_s = datetime.fromisoformat(row["TIMESTAMP"][:MICROSECONDS]).timestamp()
                prompt, output = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path.name}, line {number}: {error}") from error
            if number > MAX_REQUESTS or prompt < 0 or output < 0:
                raise ValueError(f"{path.name}, line {number}: too many rows, or negative tokens")
            requests.append(Request(at_s, max(prompt, 1), max(output, 1)))
    if not requests:
        raise ValueError(f"{path.name} has no request.")
    start_s = min(one.at_s for one in requests)
    shifted = (replace(one, at_s=one.at_s - start_s) for one in requests)
    return Trace(path.name, tuple(sorted(shifted, key=lambda one: one.at_s)))


def times(trace: Trace, factor: int, seed: int = 1) -> Trace:
    """Return `factor` copies of every request, each copy up to 15 s earlier or later."""
    rng = random.Random(seed)  # noqa: S311
    requests = [
        replace(one, at_s=max(one.at_s + (rng.uniform(-15, 15) if copy else 0.0), 0.0))
        for copy in range(factor)
        for one in trace.requests
    ]
    return Trace(f"{trace.name} x {factor}", _sorted(requests))


def diurnal(trace: Trace, days: int = 2, repeats: int = 2, seed: int = 1) -> Trace:
    """Return `days` days of `repeats` copies of the trace each, thinned from 100 % to 10 %.

    The rate follows a cosine with its low at the ends of each day.
    """
    rng = random.Random(seed)  # noqa: S311
    span_s = trace.requests[-1].at_s
    requests = [
        replace(one, at_s=at_s)
        for copy in range(days * repeats)
        for one in trace.requests
        for at_s in [one.at_s + copy * span_s]
        if rng.random() < 0.55 - 0.45 * math.cos(2 * math.pi * at_s / (span_s * repeats))
    ]
    return Trace(f"{trace.name}, {days} days of {span_s * repeats / 3600:.1f} h", _sorted(requests))


def _sorted(requests: Sequence[Request]) -> tuple[Request, ...]:
    return tuple(sorted(requests, key=lambda one: one.at_s))
