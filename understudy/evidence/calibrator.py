"""What maps the features of an attempt to a confidence, and its JSON file.

confidence = isotonic(weights . (features - means) / scales); an unfinished answer has none (0).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from understudy.errors import FailedPrecondition
from understudy.evidence.isotonic import Isotonic
from understudy.evidence.signals import FEATURES, Evidence
from understudy.evidence.threshold import Operation

Floats = NDArray[np.float64]

FORMAT: Final = "understudy.calibrator/1"
MAX_FILE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Calibrator:
    """Confidence and bar for one (SLM version, workload, output type)."""

    slm_version: str
    """Version it was measured on, such as "understudy-slm-snips@3f2a"; void for any other."""
    workload: str
    output_type: str
    """Kind of answer: "tool_call", "json" or "text"."""
    means: tuple[float, ...]
    """Mean of each feature over the samples, in the order of FEATURES."""
    scales: tuple[float, ...]
    """Standard deviation of each feature (1 where it is constant)."""
    weights: tuple[float, ...]
    """Weight of each standardised feature in the score."""
    isotonic: Isotonic
    num_samples: int
    ece: float
    """Expected calibration error, cross-validated."""
    risk_coverage: tuple[tuple[float, float], ...]
    """(coverage, risk) pairs, cross-validated."""
    operation: Operation | None = None
    """Chosen threshold and what it promises; None while none was chosen."""

    @property
    def threshold(self) -> float | None:
        """Least confidence that is accepted; None when nothing may be accepted."""
        return self.operation.threshold if self.operation else None

    def confidence(self, evidence: Evidence) -> float:
        """Return the calibrated P(answer passes) in [0, 1]."""
        if not evidence.is_finished:
            return 0.0
        return float(self.confidences(evidence.features()[None, :])[0])

    def confidences(self, features: Floats) -> Floats:
        """Return the confidences (N,) of finished answers with these features (N, F)."""
        return self.isotonic(self.scores(features))

    def scores(self, features: Floats) -> Floats:
        """Return the uncalibrated scores (N,) of features (N, F)."""
        scores: Floats = standardise(features, self.means, self.scales) @ np.array(self.weights)
        return scores

    def with_operation(self, operation: Operation) -> Calibrator:
        """Return the same calibrator with a chosen threshold."""
        return replace(self, operation=operation)

    def to_json(self) -> str:
        """Return the file's text."""
        body = {"format": FORMAT, "features": list(FEATURES), **asdict(self)}
        body["breakpoints"] = body.pop("isotonic")["breakpoints"]
        return json.dumps(body, indent=1) + "\n"

    def save(self, path: Path) -> None:
        """Write the file."""
        path.write_text(self.to_json(), encoding="utf-8")


def standardise(
    features: Floats, means: tuple[float, ...] | Floats, scales: tuple[float, ...] | Floats
) -> Floats:
    """Return features (N, F) with mean 0 and deviation 1, bounded to six deviations."""
    deviations: Floats = (features - np.asarray(means)) / np.asarray(scales)
    return deviations.clip(-6.0, 6.0)


def load_calibrator(path: Path) -> Calibrator:
    """Read a calibrator; FailedPrecondition for a file that is missing, malformed or of another
    format or feature set.
    """
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_FILE_BYTES:
            raise FailedPrecondition(
                f"The calibrator {path} has {size_bytes} bytes; at most {MAX_FILE_BYTES} are read."
            )
        return parse_calibrator(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FailedPrecondition(f"The calibrator {path} cannot be read: {error}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FailedPrecondition(f"The calibrator {path} is malformed: {error!r}.") from error


def parse_calibrator(text: str) -> Calibrator:
    """Parse the file's text; ValueError, KeyError or TypeError where it is malformed."""
    body = json.loads(text)
    if body["format"] != FORMAT or tuple(body["features"]) != FEATURES:
        raise ValueError(f"format {body['format']!r} with features {body['features']!r}")
    vectors = {name: _floats(body[name]) for name in ("means", "scales", "weights")}
    if any(len(vector) != len(FEATURES) for vector in vectors.values()):
        raise ValueError(f"means, scales and weights need {len(FEATURES)} numbers each")
    operation = body["operation"]
    return Calibrator(
        slm_version=str(body["slm_version"]),
        workload=str(body["workload"]),
        output_type=str(body["output_type"]),
        isotonic=Isotonic(_breakpoints(body["breakpoints"])),
        num_samples=int(body["num_samples"]),
        ece=float(body["ece"]),
        risk_coverage=tuple((float(c), float(r)) for c, r in body["risk_coverage"]),
        operation=None if operation is None else Operation(**operation),
        **vectors,
    )


def _floats(values: list[float]) -> tuple[float, ...]:
    floats = tuple(float(value) for value in values)
    if not np.isfinite(floats).all():
        raise ValueError("a number is not finite")
    return floats


def _breakpoints(pairs: list[list[float]]) -> tuple[tuple[float, float], ...]:
    points = tuple((float(score), float(probability)) for score, probability in pairs)
    scores, probabilities = np.array(points, dtype=np.float64).T
    if (np.diff(scores) <= 0).any() or (np.diff(probabilities) < 0).any():
        raise ValueError("breakpoints must rise")
    if probabilities[0] < 0 or probabilities[-1] > 1:
        raise ValueError("probabilities lie in [0, 1]")
    return points
