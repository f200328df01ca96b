"""Deterministic batches: which examples belong to which step, and their tensors.

The batch of a step is a pure function of (seed, step), so the step number is the whole data
cursor of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.distiller.examples import Example, Examples
from services.distiller.losses import UNUSED
from services.distiller.teaching import Teaching, TopTokens

_BATCHES_PER_POOL = 24


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences packed back to back, and what is asked at their free positions."""

    tokens: Tensor  # (T,)
    positions: Tensor  # (T,)
    lengths: list[int]
    rows: Tensor  # (N,) packed row whose hidden state predicts each free token
    vocabulary: Tensor  # (C,) token id of each column
    targets: Tensor  # (N,) columns
    allowed: Tensor  # (N, C) bool
    teacher_columns: Tensor | None = None  # (N, K)
    teacher_logprobs: Tensor | None = None  # (N, K)


class Batches:
    """Cuts examples into batches of similar lengths, shuffled anew each epoch."""

    def __init__(
        self, examples: Examples, batch_size: int, seed: int, teaching: Teaching | None = None
    ) -> None:
        self._examples, self._size, self._seed = examples, batch_size, seed
        self._teaching = teaching
        self._lengths = np.diff(examples.arrays["token_ends"], prepend=0)
        self._order: tuple[int, list[list[int]]] = (-1, [])

    @property
    def num_per_epoch(self) -> int:
        """How many steps one pass over the examples takes."""
        return max(1, len(self._examples) // self._size)

    def of_step(self, step: int) -> Batch:
        """Return the batch of a step."""
        epoch, index = divmod(step, self.num_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self._epoch(epoch))
        chosen = self._order[1][index]
        taught = [self._teaching[i] for i in chosen] if self._teaching is not None else None
        return collate([self._examples[i] for i in chosen], taught)

    def _epoch(self, epoch: int) -> list[list[int]]:
        generator = np.random.default_rng((self._seed, epoch))
        order = generator.permutation(len(self._examples))[: self.num_per_epoch * self._size]
        batches: list[list[int]] = []
        for start in range(0, len(order), self._size * _BATCHES_PER_POOL):
            pool = order[start : start + self._size * _BATCHES_PER_POOL]
            pool = pool[np.argsort(self._lengths[pool], kind="stable")]
            batches.extend(
                [int(i) for i in pool[at : at + self._size]]
                for at in range(0, len(pool), self._size)
            )
        return [batches[i] for i in generator.permutation(len(batches))]


class Interleaved:
    """Two sources of batches: every `period`-th batch is rare, all others are common."""

    def __init__(self, rare: Batches, common: Batches, period: int) -> None:
        self._rare, self._common, self._period = rare, common, period

    @property
    def num_per_epoch(self) -> int:
        """How many steps it takes until every example of both was seen."""
        rare = self._rare.num_per_epoch * self._period
        common = -(-self._common.num_per_epoch * self._period // (self._period - 1))
        return max(rare, common)

    def of_step(self, step: int) -> Batch:
        """Return the batch of a step."""
        turn, place = divmod(step, self._period)
        if place == 0:
            return self._rare.of_step(turn)
        return self._common.of_step(turn * (self._period - 1) + place - 1)


def collate(examples: Sequence[Example], taught: Sequence[TopTokens] | None = None) -> Batch:
    """Pack examples; tokens after the last free one predict nothing and are left out."""
    lengths = [int(example.free[-1]) for example in examples]
    starts = np.cumsum([0, *lengths[:-1]])
    parts = list(zip(examples, lengths, starts, strict=True))
    rows = np.concatenate([example.free - 1 + start for example, _, start in parts])
    sets = [candidates for example in examples for candidates in example.candidates]
    vocabulary = np.unique(np.concatenate(sets))
    allowed = np.zeros((len(sets), len(vocabulary)), dtype=bool)
    for row, candidates in enumerate(sets):
        allowed[row, np.searchsorted(vocabulary, candidates)] = True
    targets = np.concatenate([example.tokens[example.free] for example in examples])
    columns, logprobs = _teacher(vocabulary, taught)
    return Batch(
        tokens=_tensor(np.concatenate([example.tokens[:length] for example, length, _ in parts])),
        positions=_tensor(np.concatenate([np.arange(length) for length in lengths])),
        lengths=lengths,
        rows=_tensor(rows),
        vocabulary=_tensor(vocabulary),
        targets=_tensor(np.searchsorted(vocabulary, targets)),
        allowed=torch.from_numpy(allowed),
        teacher_columns=columns,
        teacher_logprobs=logprobs,
    )


def _teacher(
    vocabulary: np.ndarray, taught: Sequence[TopTokens] | None
) -> tuple[Tensor | None, Tensor | None]:
    if taught is None:
        return None, None
    ids = np.concatenate([top.ids for top in taught])
    columns = np.where(ids == UNUSED, UNUSED, np.searchsorted(vocabulary, ids.clip(min=0)))
    logprobs = np.concatenate([top.logprobs for top in taught])
    return _tensor(columns), torch.from_numpy(logprobs.astype(np.float32))


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))
