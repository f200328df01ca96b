"""What work costs a worker, fitted online from its own counters by least squares.

Sufficient statistics with exponential forgetting: a fit needs no past samples, costs the same at
every tick, and is plain data that a history can hold.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from services.controller.scaling.signals import AttentionLoad, ExpertsLoad

FORGETTING: Final = 0.99
"""Weight of a sample one tick later; about 100 ticks count."""
MIN_SAMPLES: Final = 4
RIDGE: Final = 1e-9
"""Keeps nearly collinear regressors solvable, relative to their own size."""
MAX_FIXED_SHARE: Final = 0.9
"""Share of the time per output token beyond which the fixed cost of a step is not believed."""


@dataclass(frozen=True, slots=True)
class Line:
    """A linear model without intercept, y = sum of coefficient x regressor, being fitted."""

    moments: tuple[tuple[float, ...], ...]
    """Weighted sums of products of regressors."""
    targets: tuple[float, ...]
    """Weighted sums of regressor times y."""
    num_samples: int = 0

    @classmethod
    def empty(cls, size: int) -> "Line":
        """Return a model of `size` regressors that has seen nothing."""
        return cls(((0.0,) * size,) * size, (0.0,) * size)

    def seen(self, regressors: Sequence[float], y: float, weight: float) -> "Line":
        """Return the model after one more sample."""
        keep = FORGETTING
        return Line(
            tuple(
                tuple(
                    keep * old + weight * left * right
                    for old, right in zip(row, regressors, strict=True)
                )
                for row, left in zip(self.moments, regressors, strict=True)
            ),
            tuple(
                keep * old + weight * one * y
                for old, one in zip(self.targets, regressors, strict=True)
            ),
            self.num_samples + 1,
        )

    def coefficients(self) -> tuple[float, ...] | None:
        """Return the fit with no coefficient below zero; None while it is not determined."""
        if self.num_samples < MIN_SAMPLES:
            return None
        active = [index for index in range(len(self.targets)) if self.moments[index][index] > 0]
        while active:
            solved = _solve(
                [[self.moments[row][column] for column in active] for row in active],
                [self.targets[row] for row in active],
            )
            if solved is None:
                return None
            least = min(range(len(active)), key=solved.__getitem__)
            if solved[least] >= 0:
                found = dict(zip(active, solved, strict=True))
                return tuple(found.get(index, 0.0) for index in range(len(self.targets)))
            del active[least]
        return None


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Seconds of an engine step: fixed + per prompt token + per output token."""

    fixed_s: float
    prefill_s: float
    decode_s: float

    def work_s(self, prefill_tokens: float, decode_tokens: float) -> float:
        """Return the engine seconds of these tokens beside the fixed cost of steps."""
        return prefill_tokens * self.prefill_s + decode_tokens * self.decode_s

    def capacity(self, tpot_s: float) -> float:
        """Return the work a worker does a second while its steps take `tpot_s` each.

        A step that may take longer carries more tokens over the same fixed cost.
        """
        return 1 - min(self.fixed_s / tpot_s, MAX_FIXED_SHARE)


@dataclass(frozen=True, slots=True)
class Fits:
    """What was learnt of a pool's workers."""

    steps: Line
    frames: Line

    @classmethod
    def empty(cls) -> "Fits":
        """Return the fits that have seen nothing."""
        return cls(Line.empty(3), Line.empty(2))

    def with_attention(self, load: AttentionLoad) -> "Fits":
        """Return the fits after one more window of the attention workers."""
        if load.steps < 1 or load.step_s <= 0:
            return self
        regressors = (load.steps, load.prefill_tokens, load.decode_tokens)
        return replace(self, steps=self.steps.seen(regressors, load.step_s, 1 / load.steps))

    def with_experts(self, load: ExpertsLoad) -> "Fits":
        """Return the fits after one more window of the expert workers."""
        if load.frames < 1 or load.compute_s <= 0:
            return self
        regressors = (load.frames, load.rows)
        return replace(self, frames=self.frames.seen(regressors, load.compute_s, 1 / load.frames))

    def step_costs(self) -> StepCosts | None:
        """Return what a step costs; None while it is not known."""
        found = self.steps.coefficients()
        if found is None or found[1] + found[2] <= 0:
            return None
        return StepCosts(*found)

    def frame_costs(self) -> tuple[float, float] | None:
        """Return the seconds of a frame and of a row; None while they are not known."""
        found = self.frames.coefficients()
        if found is None or found[1] <= 0:
            return None
        return found[0], found[1]


def best_ratio(own_s: float, rows: float, frame_s: float, row_s: float, replicas: int) -> float:
    """Return how many attention workers keep each of `replicas` expert workers busy.

    `own_s` is what attention workers compute themselves for each frame of `rows` rows that they
    send, and frame_s + row_s x rows what an expert worker takes for one. Every expert worker gets
    a frame of each exchange and computes the frames of several attention workers together. The
    bounds are those of arXiv 2601.21351; the third, the time of the exchange itself, is left out:
    it is not measured apart from the queue.
    """
    rows_s = row_s * rows
    return max((own_s - frame_s / replicas) / rows_s, math.sqrt(frame_s / rows_s) / replicas)


def _solve(matrix: list[list[float]], right: list[float]) -> list[float] | None:
    """Solve a small symmetric system by Gaussian elimination; None when it is singular."""
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for index in range(size):
        rows[index][index] *= 1 + RIDGE
    for index in range(size):
        pivot = max(range(index, size), key=lambda row: abs(rows[row][index]))
        rows[index], rows[pivot] = rows[pivot], rows[index]
        head = rows[index][index]
        if abs(head) <= 1e-300:
            return None
        for below in range(index + 1, size):
            factor = rows[below][index] / head
            for column in range(index, size + 1):
                rows[below][column] -= factor * rows[index][column]
    solved = [0.0] * size
    for index in reversed(range(size)):
        known = sum(rows[index][column] * solved[column] for column in range(index + 1, size))
        solved[index] = (rows[index][size] - known) / rows[index][index]
    return solved
