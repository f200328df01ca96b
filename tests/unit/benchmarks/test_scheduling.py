"""What `benchmarks.scheduling` can be asked for, and how it sums up rounds."""

import pytest

from benchmarks import scheduling


def test_budgets_are_numbers_or_the_whole_prompt():
    wanted = scheduling.read_arguments(["--budgets", "8,12,whole,8"])
    assert wanted.budgets == (8, 12, scheduling.WHOLE)


def test_budgets_and_rounds_have_defaults_for_quick_and_full_runs():
    quick, full = scheduling.read_arguments(["--quick"]), scheduling.read_arguments([])
    assert (quick.budgets, quick.rounds) == (scheduling.QUICK_BUDGETS, 1)
    assert (full.budgets, full.rounds) == (scheduling.BUDGETS, 5)


@pytest.mark.parametrize(("given", "word"), [("8,some", "'some'"), ("0", "'0'"), ("", "''")])
def test_a_budget_that_is_none_is_refused(
    given: str, word: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        scheduling.read_arguments(["--budgets", given])
    assert f"{word} is neither a positive number nor `whole`" in capsys.readouterr().err


def test_one_round_has_no_range():
    assert scheduling.summary([0.5]) == "0.5"
    assert scheduling.summary([3.0, 1.0, 2.0]) == "2 (1 to 3)"


def test_the_ratio_of_gaps_is_of_the_tail_to_the_quiet_median():
    assert scheduling.Gaps(0.02, 0.03, 0.05, 1.0).ratio == pytest.approx(2.5)
