"""Fitting a calibrator: ridge logistic regression orders answers, isotonic regression calibrates.

Published figures (ECE, risk-coverage) and the threshold's confidences are cross-validated, so that
they describe answers the fit has not seen.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from understudy.errors import FailedPrecondition
from understudy.evidence.calibrator import Calibrator, standardise
from understudy.evidence.isotonic import fit_isotonic
from understudy.evidence.measures import expected_calibration_error, risk_coverage
from understudy.evidence.signals import FEATURES

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

NUM_FOLDS: Final = 5
RIDGE: Final = 1.0
MIN_SAMPLES: Final = 50
_MAX_NEWTON_STEPS: Final = 50


def fit_calibrator(
    features: Floats, passed: Bools, *, slm_version: str, workload: str, output_type: str
) -> Calibrator:
    """Fit P(passed | features) on features (N, F) of finished answers and their outcomes (N,).

    Raises FailedPrecondition below 50 samples; 500 to 1,000 are worth having. The threshold is
    chosen separately, on `cross_validated_confidences`.
    """
    _check(features, passed)
    means, scales, weights = _fit_scores(features, passed)
    confidences = cross_validated_confidences(features, passed)
    curve = risk_coverage(confidences, passed)
    return Calibrator(
        slm_version=slm_version,
        workload=workload,
        output_type=output_type,
        means=tuple(means.tolist()),
        scales=tuple(scales.tolist()),
        weights=tuple(weights.tolist()),
        isotonic=fit_isotonic(standardise(features, means, scales) @ weights, passed),
        num_samples=passed.size,
        ece=expected_calibration_error(confidences, passed),
        risk_coverage=tuple((coverage, risk) for coverage, risk in curve),
    )


def cross_validated_confidences(features: Floats, passed: Bools, seed: int = 0) -> Floats:
    """Return confidences (N,), each from a fit on the other folds."""
    _check(features, passed)
    folds = np.random.default_rng(seed).permutation(passed.size) % NUM_FOLDS
    confidences = np.empty(passed.size)
    for fold in range(NUM_FOLDS):
        held_out = folds == fold
        means, scales, weights = _fit_scores(features[~held_out], passed[~held_out])
        scores = standardise(features, means, scales) @ weights
        curve = fit_isotonic(scores[~held_out], passed[~held_out])
        confidences[held_out] = curve(scores[held_out])
    return confidences


def _check(features: Floats, passed: Bools) -> None:
    if features.shape != (passed.size, len(FEATURES)):
        raise ValueError(f"features are {features.shape}, not ({passed.size}, {len(FEATURES)})")
    if passed.size < MIN_SAMPLES:
        raise FailedPrecondition(
            f"{passed.size} samples cannot calibrate a model; bring at least {MIN_SAMPLES}."
        )


def _fit_scores(features: Floats, passed: Bools) -> tuple[Floats, Floats, Floats]:
    means, scales = features.mean(axis=0), features.std(axis=0)
    scales[scales < 1e-9] = 1.0
    return means, scales, _logistic(standardise(features, means, scales), passed)


def _logistic(inputs: Floats, passed: Bools) -> Floats:
    """Return ridge logistic weights (F,) by Newton's method; the intercept is fitted and dropped,
    because isotonic regression is free to place the curve.
    """
    design = np.column_stack([inputs, np.ones(len(inputs))])
    penalty = np.full(design.shape[1], RIDGE)
    penalty[-1] = 1e-6
    weights = np.zeros(design.shape[1])
    for _ in range(_MAX_NEWTON_STEPS):
        predicted = 1.0 / (1.0 + np.exp(-(design @ weights).clip(-30, 30)))
        gradient = design.T @ (passed - predicted) - penalty * weights
        curvature = (design * (predicted * (1 - predicted))[:, None]).T @ design
        step = np.linalg.solve(curvature + np.diag(penalty), gradient)
        weights += step
        if np.abs(step).max() < 1e-9:
            break
    return weights[:-1]
