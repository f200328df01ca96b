"""Evidence against hand-computed values: features, isotonic curves, thresholds, files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.errors import FailedPrecondition
from understudy.evidence import (
    FEATURES,
    Calibrator,
    Evidence,
    choose_threshold,
    cross_validated_confidences,
    expected_calibration_error,
    fit_calibrator,
    fit_isotonic,
    load_calibrator,
    risk_coverage,
)


def evidence(*, is_finished: bool = True) -> Evidence:
    return Evidence(
        logprobs=[0.0, -0.1, -0.5, -0.2, -0.3],
        margins=[1.0, 0.8, 0.2, 0.6, 0.4],
        mask_losses=[0.0, 0.1, 0.3, 0.0, 0.2],
        is_forced=[True, False, False, False, False],
        is_finished=is_finished,
    )


def test_features_look_at_free_tokens_only() -> None:
    found = dict(zip(FEATURES, evidence().features().tolist(), strict=True))
    assert found == pytest.approx(
        {
            "min_margin": 0.2,
            "low_margin": 0.4,
            "mean_margin": 0.5,
            "min_logprob": -0.5,
            "sum_logprob": -1.1,
            "max_mask_loss": 0.3,
            "log_num_free": np.log(5),
        }
    )


def test_an_answer_without_free_tokens_carries_no_doubt() -> None:
    forced = Evidence([0.0], [1.0], [0.0], [True], is_finished=True)
    assert forced.features().tolist() == [1, 1, 1, 0, 0, 0, 0]


def test_isotonic_pools_violators_as_computed_by_hand() -> None:
    scores = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    passed = np.array([False, True, False, True, True])
    curve = fit_isotonic(scores, passed)
    assert curve.breakpoints == ((1.0, 0.0), (2.0, 0.5), (3.0, 0.5), (4.0, 1.0), (5.0, 1.0))
    assert curve(np.array([-1.0, 1.5, 2.5, 3.5, 9.0])).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_isotonic_gives_equal_scores_one_probability() -> None:
    curve = fit_isotonic(np.array([0.0, 0.0, 1.0]), np.array([True, False, True]))
    assert curve.breakpoints == ((0.0, 0.5), (1.0, 1.0))


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=1, max_size=60))
def test_isotonic_is_monotone_bounded_and_keeps_the_mean(
    samples: list[tuple[float, bool]],
) -> None:
    scores, passed = np.array([s for s, _ in samples]), np.array([p for _, p in samples])
    fitted = fit_isotonic(scores, passed)(scores)
    assert (np.diff(fitted[np.argsort(scores, kind="stable")]) >= -1e-12).all()
    assert fitted.min() >= 0 and fitted.max() <= 1
    assert fitted.mean() == pytest.approx(passed.mean())


def test_threshold_is_the_cheapest_that_keeps_the_quality() -> None:
    confidences = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    slm = np.array([True, True, True, False, False])
    llm = np.array([True, True, False, True, True])
    found = choose_threshold(confidences, slm, llm, 0.1, 1.0, max_loss=0.0)
    # Accepting four requests still keeps the LLM's four right answers: 0.1 + 1/5 of its cost.
    assert (found.threshold, found.coverage) == (0.6, 0.8)
    assert found.cost_ratio == pytest.approx(0.3)
    assert (found.quality, found.llm_quality) == pytest.approx((0.8, 0.8))


def test_threshold_honours_the_allowed_loss_and_the_lower_bound() -> None:
    confidences = np.array([0.9, 0.8, 0.7, 0.6])
    slm, llm = np.array([True, True, False, False]), np.array([True] * 4)
    assert choose_threshold(confidences, slm, llm, 0.1, 1.0, 0.25).coverage == 0.75
    assert choose_threshold(confidences, slm, llm, 0.1, 1.0, 0.25, z=1.96).coverage == 0.5


def test_ties_are_accepted_together() -> None:
    confidences = np.array([0.9, 0.9])
    found = choose_threshold(
        confidences, np.array([True, False]), np.array([True, True]), 0.1, 1.0, 0.0
    )
    assert found.threshold is None and found.cost_ratio == 1.0


def test_a_pair_dearer_than_the_llm_is_no_operation() -> None:
    always = np.array([True, True])
    found = choose_threshold(np.array([0.9, 0.1]), always, always, 2.0, 1.0, 0.0)
    assert found.threshold is None


def test_measures_match_hand_computed_values() -> None:
    confidences = np.array([0.95, 0.95, 0.15, 0.15])
    passed = np.array([True, False, False, False])
    assert expected_calibration_error(confidences, passed) == pytest.approx(0.5 * 0.45 + 0.5 * 0.15)
    assert risk_coverage(confidences, passed, num_points=2) == [[0.25, 0.0], [1.0, 0.75]]


def samples(num: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    features = rng.normal(size=(num, len(FEATURES)))
    chances = 1 / (1 + np.exp(-3 * features[:, 0]))
    return features, rng.random(num) < chances


def fitted(num: int = 600) -> Calibrator:
    features, passed = samples(num)
    return fit_calibrator(
        features, passed, slm_version="slm@1", workload="snips", output_type="tool_call"
    )


def test_a_fit_orders_by_the_informative_feature_and_is_calibrated() -> None:
    calibrator = fitted()
    assert np.argmax(np.abs(calibrator.weights)) == FEATURES.index("min_margin")
    assert calibrator.ece < 0.1
    assert calibrator.risk_coverage[0][1] < calibrator.risk_coverage[-1][1]


def test_cross_validated_confidences_are_deterministic() -> None:
    features, passed = samples(200)
    first = cross_validated_confidences(features, passed)
    np.testing.assert_array_equal(first, cross_validated_confidences(features, passed))


def test_an_unfinished_answer_has_no_confidence() -> None:
    assert fitted().confidence(evidence(is_finished=False)) == 0.0
    assert 0.0 <= fitted().confidence(evidence()) <= 1.0


def test_few_samples_and_wrong_shapes_are_refused() -> None:
    features, passed = samples(20)
    with pytest.raises(FailedPrecondition, match="20 samples"):
        cross_validated_confidences(features, passed)
    with pytest.raises(ValueError, match="features are"):
        cross_validated_confidences(features[:, :2], passed)


def test_calibrator_file_round_trips(tmp_path: Path) -> None:
    features, passed = samples(100)
    operation = choose_threshold(
        cross_validated_confidences(features, passed), passed, passed, 0.1, 1.0, 0.01
    )
    calibrator = fitted(100).with_operation(operation)
    calibrator.save(tmp_path / "calibrator.json")
    loaded = load_calibrator(tmp_path / "calibrator.json")
    assert loaded == calibrator
    assert loaded.threshold == operation.threshold
    assert fitted(100).threshold is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", "understudy.calibrator/9"),
        ("features", ["min_margin"]),
        ("weights", [1.0]),
        ("means", [float("nan")] * len(FEATURES)),
        ("breakpoints", [[1.0, 0.5], [0.0, 0.6]]),
        ("breakpoints", [[0.0, 0.5], [1.0, 1.6]]),
        ("breakpoints", []),
        ("operation", {"threshold": 0.5}),
        ("ece", None),
    ],
)
def test_malformed_calibrators_are_refused(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "calibrator.json"
    path.write_text(json.dumps({**json.loads(fitted(60).to_json()), field: value}))
    with pytest.raises(FailedPrecondition, match="malformed"):
        load_calibrator(path)


def test_missing_and_oversized_calibrators_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        load_calibrator(tmp_path / "none.json")
    (tmp_path / "big.json").write_text(" " * (1 << 20) + " ")
    with pytest.raises(FailedPrecondition, match="at most"):
        load_calibrator(tmp_path / "big.json")
