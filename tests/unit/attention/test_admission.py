"""Every malformed submission is refused by a sentence that names the field."""

from dataclasses import replace

import pytest

from services.attention.admission import (
    Limits,
    check_deadline,
    check_submission,
    least_outputs,
    retry_after_s,
)
from services.attention.forecast import MIN_STEPS, Outlook, StepCosts
from services.attention.sequence import DecodingParams
from tests.unit.attention.parts import ROOT, submission
from understudy.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PromptTooLong,
    ResourceExhausted,
)

LIMITS = Limits(vocab_size=97, max_context=32, adapters=("tools",))


def test_good_submission_passes():
    check_submission(submission(kv_root=ROOT, adapter="tools"), LIMITS)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tokens": ()}, "tokens"),
        ({"tokens": (1, 97)}, "tokens"),
        ({"num_committed": 3}, "committed_tokens"),
        ({"kv_root": b"short"}, "kv_root"),
    ],
)
def test_malformed_submission_is_refused_by_field(fields: dict, field: str):
    with pytest.raises(InvalidArgument) as refusal:
        check_submission(submission(**fields), LIMITS)
    assert refusal.value.metadata["field"] == field


def test_bad_tenant_is_refused():
    with pytest.raises(InvalidArgument, match="tenant"):
        check_submission(replace(submission(kv_root=ROOT), tenant="A:b"), LIMITS)


def test_prompt_beyond_context_is_refused_with_both_numbers():
    with pytest.raises(PromptTooLong, match=r"32 tokens .* 32") as refusal:
        check_submission(submission(tokens=range(3, 35)), LIMITS)
    assert refusal.value.metadata["max_context"] == "32"


def test_unknown_adapter_is_not_found():
    with pytest.raises(NotFound, match="'other'"):
        check_submission(submission(adapter="other"), LIMITS)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (DecodingParams(max_tokens=0), "sampling.max_tokens"),
        (DecodingParams(max_tokens=33), "sampling.max_tokens"),
        (DecodingParams(max_tokens=8, temperature=-0.1), "sampling.temperature"),
        (DecodingParams(max_tokens=8, temperature=float("nan")), "sampling.temperature"),
        (DecodingParams(max_tokens=8, temperature=4.1), "sampling.temperature"),
        (DecodingParams(max_tokens=8, top_p=0.0), "sampling.top_p"),
        (DecodingParams(max_tokens=8, top_p=float("nan")), "sampling.top_p"),
        (DecodingParams(max_tokens=8, stop=("x",) * 9), "sampling.stop"),
        (DecodingParams(max_tokens=8, stop=("",)), "sampling.stop"),
        (DecodingParams(max_tokens=8, stop=("é" * 65,)), "sampling.stop"),
    ],
)
def test_params_out_of_range_are_refused_by_field(params: DecodingParams, field: str):
    with pytest.raises(InvalidArgument) as refusal:
        check_submission(replace(submission(), params=params), LIMITS)
    assert refusal.value.metadata["field"] == field


COSTS = StepCosts()
for _ in range(MIN_STEPS):
    COSTS.note(10, 0.1)  # a tenth of a second a step, whatever its size


def outlook(own_steps: int = 1, ahead_steps: int = 0) -> Outlook:
    return Outlook(10 * own_steps, own_steps, 10 * ahead_steps, ahead_steps)


def test_deadline_that_can_be_met_passes_and_so_does_one_before_rates_are_known():
    check_deadline(outlook(10, 10), COSTS, 2.1)
    check_deadline(outlook(10, 10), StepCosts(), 0.001)


def test_deadline_too_short_even_alone_is_exceeded_at_once():
    with pytest.raises(DeadlineExceeded, match="even alone") as refusal:
        check_deadline(outlook(10, 10), COSTS, 0.9)
    assert refusal.value.metadata["reason"] == "deadline cannot be met"


def test_deadline_missed_for_work_ahead_is_refused_until_that_is_done():
    with pytest.raises(ResourceExhausted, match="work ahead") as refusal:
        check_deadline(outlook(10, 20), COSTS, 1.5)
    assert refusal.value.retry_after_s == pytest.approx(1.5)


def test_delay_of_a_full_queue_is_its_mean_share_of_the_backlog():
    assert retry_after_s(StepCosts(), 5, 1000) == 1.0
    assert retry_after_s(COSTS, 0, 1000) == 1.0
    per_token = StepCosts()
    for size in range(1, MIN_STEPS + 1):
        per_token.note(size, 0.01 * size)
    assert retry_after_s(per_token, 4, 1000) == pytest.approx(2.5, rel=1e-3)
    assert retry_after_s(per_token, 4, 10**6) == 60.0


def test_only_outputs_that_cannot_stop_early_are_counted_on():
    endless = replace(submission(max_tokens=8, ignore_eos=True, num_committed=2))
    assert least_outputs(endless) == 6
    assert least_outputs(submission(max_tokens=8)) == 1
    params = replace(endless.params, stop=("x",))
    assert least_outputs(replace(endless, params=params)) == 1
