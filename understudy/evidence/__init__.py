"""How sure an answer is: token margins -> features -> calibrated P(answer passes) -> accept or not.

A calibrator belongs to one (SLM version, workload, output type); there is no default threshold.
Method: isotonic calibration of token margins with a cost-minimal threshold under a quality floor
(UCCI, arXiv 2605.18796), over free tokens only. Pure numpy, no network.
"""

from understudy.evidence.calibrator import Calibrator, load_calibrator
from understudy.evidence.fit import cross_validated_confidences, fit_calibrator
from understudy.evidence.isotonic import Isotonic, fit_isotonic
from understudy.evidence.measures import expected_calibration_error, risk_coverage
from understudy.evidence.signals import FEATURES, Evidence
from understudy.evidence.threshold import Operation, choose_threshold

__all__ = [
    "FEATURES",
    "Calibrator",
    "Evidence",
    "Isotonic",
    "Operation",
    "choose_threshold",
    "cross_validated_confidences",
    "expected_calibration_error",
    "fit_calibrator",
    "fit_isotonic",
    "load_calibrator",
    "risk_coverage",
]
