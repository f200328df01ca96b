"""Questions and answers between `benchmarks.engine` and a contestant: JSON lines over pipes.

Only the standard library: a contestant may run in a Python that has nothing of ours.
"""

import json
import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol, TextIO

FIRST_TOKEN: Final = 3
"""Ids below are special tokens."""
NUM_TOKENS: Final = 49_000


class Contestant(Protocol):
    """An engine that holds one model; every answer is seconds."""

    def decode(self, num_sequences: int, context: int, num_tokens: int) -> float:
        """Add `num_tokens` greedy tokens to each of the sequences, which hold `context` tokens."""
        ...

    def prefill(self, num_tokens: int) -> float:
        """Compute a new prompt of that many tokens to its first greedy token."""
        ...


def prompt(seed: int, num_tokens: int) -> list[int]:
    """Return the same tokens for every contestant."""
    rng = random.Random(seed)  # noqa: S311
    return [rng.randrange(FIRST_TOKEN, NUM_TOKENS) for _ in range(num_tokens)]


def answer(contestant: Contestant, facts: Mapping[str, object]) -> None:
    """Say `facts`, then answer questions until standard input ends.

    Libraries that print do so to standard error.
    """
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)
        _say(output, dict(facts))
        for line in sys.stdin:
            question = json.loads(line)
            kind = question.pop("kind")
            seconds = (
                contestant.decode(**question)
                if kind == "decode"
                else contestant.prefill(**question)
            )
            _say(output, {"seconds": seconds})


def anonymous_bytes(pid: int | str = "self") -> int:
    """Return the resident memory of a process that no file backs (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _say(output: TextIO, content: dict[str, object]) -> None:
    print(json.dumps(content), file=output, flush=True)
