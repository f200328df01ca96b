"""Isotonic regression by pool-adjacent-violators: the non-decreasing curve of least squares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A non-decreasing curve through (score, probability) points, linear between, flat beyond."""

    breakpoints: tuple[tuple[float, float], ...]

    def __call__(self, scores: Floats) -> Floats:
        """Return the probabilities at these scores, same shape."""
        xs, ys = np.array(self.breakpoints, dtype=np.float64).T
        probabilities: Floats = np.interp(scores, xs, ys)
        return probabilities


def fit_isotonic(scores: Floats, passed: NDArray[np.bool_]) -> Isotonic:
    """Fit P(passed | score) over samples (N,), N >= 1; equal scores share one probability."""
    xs, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    means = np.bincount(inverse, weights=passed.astype(np.float64)) / counts
    points: list[tuple[float, float]] = []
    for first, last, value in _pool(means, counts.astype(np.float64)):
        points.append((float(xs[first]), value))
        if last > first:
            points.append((float(xs[last]), value))
    return Isotonic(tuple(points))


def _pool(values: Floats, weights: Floats) -> list[tuple[int, int, float]]:
    """Return blocks (first, last, value) in order: neighbours that would decrease are pooled."""
    blocks: list[tuple[int, int, float, float]] = []
    for index, (value, weight) in enumerate(zip(values.tolist(), weights.tolist(), strict=True)):
        first = index
        while blocks and blocks[-1][2] >= value:
            first, _, other, other_weight = blocks.pop()
            value = (value * weight + other * other_weight) / (weight + other_weight)
            weight += other_weight
        blocks.append((first, index, value, weight))
    return [(first, last, value) for first, last, value, _ in blocks]
