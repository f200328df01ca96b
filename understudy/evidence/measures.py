"""How honest and how useful a confidence is: ECE and risk-coverage."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def expected_calibration_error(confidences: Floats, passed: Bools, num_bins: int = 10) -> float:
    """Return the mean |accuracy - confidence| over equal-width bins, weighted by their size."""
    bins = np.minimum((confidences * num_bins).astype(np.int64), num_bins - 1)
    gaps = np.bincount(bins, weights=passed - confidences, minlength=num_bins)
    return float(np.abs(gaps).sum() / confidences.size)


def risk_coverage(confidences: Floats, passed: Bools, num_points: int = 20) -> list[list[float]]:
    """Return [coverage, risk] pairs: the share of wrong answers among the most confident ones."""
    order = np.argsort(-confidences, kind="stable")
    wrong = np.cumsum(~passed[order])
    sizes = np.unique(np.linspace(1, confidences.size, num_points).round().astype(np.int64))
    return [[size / confidences.size, float(wrong[size - 1] / size)] for size in sizes.tolist()]
