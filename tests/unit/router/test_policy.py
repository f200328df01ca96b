"""The rules: who tries first, whether an answer stands, what it cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.router.answers import Attempt, Usage
from services.router.policy import Path, attempt_cost, choose_path, cost_ratio, decide, judge
from understudy.evidence import FEATURES, Calibrator, Isotonic, Operation
from understudy.workloads import Verdict

ZEROS = (0.0,) * len(FEATURES)
CALIBRATOR = Calibrator(
    "slm@1", "snips", "tool_call", ZEROS, ZEROS, ZEROS, Isotonic(((0.0, 0.5),)), 100, 0.0, (),
    Operation(0.7, 0.8, 0.9, 0.9, 0.3),
)  # fmt: skip
NOTHING_PASSES = replace(CALIBRATOR, operation=Operation(None, 0.0, 0.9, 0.9, 1.0))


def attempt(pool: str, cost: float, prompt: int = 100, completion: int = 20) -> Attempt:
    usage = Usage(prompt, completion, 0)
    return Attempt(pool, f"{pool}@1", "", usage, 0, None, 120, cost, 0.1, (), "w:1")


@pytest.mark.parametrize(
    ("model", "calibrator", "is_greedy", "is_slm_available", "expected"),
    [
        ("auto", CALIBRATOR, True, True, Path("slm", None)),
        ("auto", CALIBRATOR, True, False, Path("llm", "slm_unavailable")),
        ("auto", CALIBRATOR, False, True, Path("llm", "no_calibrator")),
        ("auto", None, True, True, Path("llm", "no_calibrator")),
        ("auto", NOTHING_PASSES, True, True, Path("llm", "low_confidence")),
        ("slm", CALIBRATOR, True, False, Path("slm", "requested")),
        ("llm", None, False, True, Path("llm", "requested")),
    ],
)
def test_path_follows_the_rules(
    model: str,
    calibrator: Calibrator | None,
    is_greedy: bool,
    is_slm_available: bool,
    expected: Path,
) -> None:
    path = choose_path(model, calibrator, is_greedy=is_greedy, is_slm_available=is_slm_available)
    assert path == expected
    assert path.is_trial == (expected.reason is None)


def test_judgement_asks_for_confidence_first_then_for_every_verdict() -> None:
    good, bad = Verdict("schema", True), Verdict("spans", False, "One value is foreign.")
    assert judge(0.7, 0.7, [good]) == "slm_accepted"
    assert judge(0.69, 0.7, [good]) == "low_confidence"
    assert judge(0.9, 0.7, [good, bad]) == "verifier_refused"


def test_cost_is_positions_in_units_of_llm_positions_whatever_was_cached() -> None:
    assert attempt_cost(Usage(100, 20, 90), 12, 100) == pytest.approx(14.4)
    assert attempt_cost(Usage(100, 20, 0), 100, 100) == 120


def test_cost_ratio_of_an_accepted_answer_uses_its_own_length() -> None:
    assert cost_ratio([attempt("slm", 14.4)]) == pytest.approx(0.12)


def test_cost_ratio_of_an_escalation_is_above_one_by_what_the_slm_cost() -> None:
    attempts = [attempt("slm", 14.4), attempt("llm", 130.0, completion=30)]
    assert cost_ratio(attempts) == pytest.approx(144.4 / 130)


def test_decision_sums_attempts_and_names_the_last_pool() -> None:
    attempts = [replace(attempt("slm", 14.4), confidence=0.4), attempt("llm", 120.0)]
    decision = decide(
        "low_confidence", attempts, workload="snips", threshold=0.7, trace_id="", is_resumable=True
    )
    assert (decision.pool, decision.cost, decision.confidence) == ("llm", 134.4, 0.4)
