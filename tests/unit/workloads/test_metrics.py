"""Figures against hand-counted rows."""

import pytest

from understudy.workloads.metrics import figures, is_exact_match
from understudy.workloads.workload import ToolCall

GOLD = ToolCall("GetWeather", {"city": "Rome", "timeRange": ["today", "at 9"]})


def test_case_and_outer_spaces_do_not_matter() -> None:
    answer = ToolCall("GetWeather", {"timeRange": [" Today", "AT 9"], "city": "rome "})
    assert is_exact_match(answer, GOLD)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        ToolCall("PlayMusic", GOLD.arguments),
        ToolCall("GetWeather", {"city": "Rome"}),
        ToolCall("GetWeather", {"city": "Rome", "timeRange": ["at 9", "today"]}),
        ToolCall("GetWeather", {"city": "Rome", "timeRange": "today"}),
    ],
)
def test_any_other_difference_matters(answer: ToolCall | None) -> None:
    assert not is_exact_match(answer, GOLD)


def test_figures_count_slots_over_all_rows() -> None:
    answers = [GOLD, ToolCall("GetWeather", {"city": "Paris"}), None]
    found = figures((answer, GOLD) for answer in answers)
    # 3 slots right of 4 given and 9 wanted: F1 = 6 / 13.
    assert found.slot_f1 == pytest.approx(6 / 13)
    assert found.exact_match == pytest.approx(1 / 3)
    assert found.tool_accuracy == pytest.approx(2 / 3)
    assert found.schema_valid == pytest.approx(2 / 3)


def test_no_rows_have_no_quality() -> None:
    assert figures([]).num_rows == 0
