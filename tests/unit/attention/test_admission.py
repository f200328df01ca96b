"""Every malformed submission is refused by a sentence that names the field."""

from dataclasses import replace

import pytest

from services.attention.admission import Limits, check_submission
from services.attention.sequence import DecodingParams
from tests.unit.attention.parts import ROOT, submission
from understudy.errors import InvalidArgument, NotFound, PromptTooLong

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
