"""Training examples: token ids, which answer positions are free, and their candidates.

Built once from rows by walking each gold answer through the workload's grammar, then kept as one
npz file (plain arrays, no pickle).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from understudy.errors import FailedPrecondition, InvalidArgument

Int32 = npt.NDArray[np.int32]
_ARRAYS = (
    "tokens",
    "token_ends",
    "prompt_lengths",
    "free",
    "free_ends",
    "candidates",
    "candidate_ends",
)


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with its answer; `free[i]` is the index of a token that was a real choice."""

    tokens: Int32
    prompt_length: int
    free: Int32
    candidates: tuple[Int32, ...]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Examples(Sequence[Example]):
    """Many examples in flat arrays; indexing builds views."""

    arrays: dict[str, Int32]

    def __len__(self) -> int:
        return len(self.arrays["token_ends"])

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        arrays = self.arrays
        start, end = _span(arrays["token_ends"], index)
        first, last = _span(arrays["free_ends"], index)
        sets = tuple(
            arrays["candidates"][slice(*_span(arrays["candidate_ends"], position))]
            for position in range(first, last)
        )
        return Example(
            tokens=arrays["tokens"][start:end],
            prompt_length=int(arrays["prompt_lengths"][index]),
            free=arrays["free"][first:last],
            candidates=sets,
        )

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    @classmethod
    def pack(cls, examples: Sequence[Example]) -> Examples:
        """Flatten examples into arrays."""
        sets = [candidates for example in examples for candidates in example.candidates]
        return cls(
            {
                "tokens": _joined([example.tokens for example in examples]),
                "token_ends": _ends([len(example.tokens) for example in examples]),
                "prompt_lengths": np.array([e.prompt_length for e in examples], dtype=np.int32),
                "free": _joined([example.free for example in examples]),
                "free_ends": _ends([len(example.free) for example in examples]),
                "candidates": _joined(sets),
                "candidate_ends": _ends([len(candidates) for candidates in sets]),
            }
        )

    def first(self, num_examples: int) -> Examples:
        """Return the first examples, or all where there are fewer."""
        return Examples.pack([self[index] for index in range(min(num_examples, len(self)))])

    @classmethod
    def joined(cls, parts: Sequence[Examples]) -> Examples:
        """Return all examples of all parts, in order."""
        arrays = [part.arrays for part in parts]
        return cls({name: _chained(name, [part[name] for part in arrays]) for name in _ARRAYS})

    def save(self, path: Path) -> None:
        """Write the arrays to one npz file, atomically."""
        staging = path.with_suffix(".tmp.npz")
        np.savez(staging, **self.arrays)  # type: ignore[arg-type]
        staging.rename(path)

    @classmethod
    def load(cls, path: Path) -> Examples:
        """Read what save() wrote; anything else is refused."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                return cls({name: archive[name] for name in _ARRAYS})
        except (OSError, ValueError, KeyError) as error:
            raise FailedPrecondition(f"The examples {path} cannot be read: {error}") from error


class Walker:
    """Walks answers through grammars and notes where the model has a choice."""

    def __init__(self, tokenizer_source: str, vocab_size: int, end_id: int) -> None:
        import llguidance

        self._matcher = llguidance.LLMatcher
        self._tokenizer = llguidance.LLTokenizer(
            tokenizer_source, n_vocab=vocab_size, eos_token=end_id
        )
        self._end_id = end_id

    def walk(self, grammar: str, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> Example:
        """Return the example; an answer the grammar does not admit is refused."""
        matcher = self._matcher(self._tokenizer, grammar)
        if matcher.is_error():
            raise InvalidArgument(f"The grammar does not compile: {matcher.get_error()}")
        free: list[int] = []
        candidates: list[Int32] = []
        position = 0
        while position < len(answer_ids) and not matcher.is_stopped():
            forced = len(matcher.compute_ff_tokens())
            if not forced:
                allowed = _allowed(matcher.compute_bitmask())
                if len(allowed) > 1:
                    free.append(len(prompt_ids) + position)
                    candidates.append(allowed)
                forced = 1
            if matcher.try_consume_tokens(list(answer_ids[position : position + forced])) < forced:
                raise InvalidArgument(f"The grammar refuses the answer at token {position}.")
            position += forced
        if position < len(answer_ids) or not matcher.is_accepting():
            raise InvalidArgument("The answer ends before or after the grammar does.")
        tokens = np.array([*prompt_ids, *answer_ids, self._end_id], dtype=np.int32)
        return Example(tokens, len(prompt_ids), np.array(free, dtype=np.int32), tuple(candidates))


def walk_all(
    rows: Sequence[tuple[str, Sequence[int], Sequence[int]]],
    walker: Walker,
    progress: Callable[[int], None],
) -> tuple[Examples, int]:
    """Walk (grammar, prompt ids, answer ids) rows; also return how many were refused."""
    examples: list[Example] = []
    for number, (grammar, prompt_ids, answer_ids) in enumerate(rows, 1):
        with suppress(InvalidArgument):
            examples.append(walker.walk(grammar, prompt_ids, answer_ids))
        progress(number)
    return Examples.pack(examples), len(rows) - len(examples)


def _allowed(bitmask: bytes) -> Int32:
    bits = np.unpackbits(np.frombuffer(bitmask, dtype=np.uint8), bitorder="little")
    return np.flatnonzero(bits).astype(np.int32)


def _span(ends: Int32, index: int) -> tuple[int, int]:
    return (int(ends[index - 1]) if index else 0, int(ends[index]))


def _chained(name: str, parts: Sequence[Int32]) -> Int32:
    if not name.endswith("_ends"):
        return _joined(parts)
    offsets = np.cumsum([0, *(int(part[-1]) for part in parts[:-1])])
    return _joined([part + np.int32(offset) for part, offset in zip(parts, offsets, strict=True)])


def _joined(parts: Sequence[Int32]) -> Int32:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)


def _ends(lengths: Sequence[int]) -> Int32:
    return np.cumsum(np.array(lengths, dtype=np.int64)).astype(np.int32)
