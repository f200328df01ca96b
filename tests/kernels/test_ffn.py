"""SwiGLU and its experts: against the reference over ragged and empty groups."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.builders import ffn, normal
from understudy.errors import FailedPrecondition, Internal
from understudy_kernels import Format, ops
from understudy_kernels.packing import stack_experts
from understudy_kernels.reference import ffn as reference

KINDS = (Format.F32, Format.BF16, Format.Q8_0, Format.Q4_1, Format.Q4_K)


def close(found: torch.Tensor, wanted: torch.Tensor, *, exact: bool) -> None:
    # One activation rounded to the other side moves a result by a fraction of its row's scale.
    scale = float(wanted.abs().max()) if wanted.numel() else 1.0
    torch.testing.assert_close(
        found, wanted, rtol=1e-4, atol=max(scale, 1e-6) * (2e-5 if exact else 2e-3)
    )


@settings(max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    num_rows=st.sampled_from((0, 1, 2, 7, 33)),
    ffn_size=st.sampled_from((256, 512)),
    exact=st.booleans(),
)
def test_swiglu_equals_its_reference(
    kind: Format, num_rows: int, ffn_size: int, *, exact: bool
) -> None:
    packed = ffn(kind, 256, ffn_size)
    hidden, norm = normal((num_rows, 256), 1), normal((256,), 2)
    parts = (packed.gate.data, packed.up.data, packed.down.data, packed.formats, ffn_size, exact)
    close(ops.swiglu(hidden, packed, exact=exact), reference.swiglu(hidden, *parts), exact=exact)
    found = ops.normed_swiglu(hidden, norm, 1e-5, packed, exact=exact)
    close(found, reference.normed_swiglu(hidden, norm, 1e-5, *parts), exact=exact)


@settings(max_examples=60)
@given(
    kind=st.sampled_from((Format.BF16, Format.Q4_1)),
    num_rows=st.sampled_from((0, 1, 2, 7, 33)),
    num_held=st.integers(1, 5),
    first=st.integers(0, 4),
    seed=st.integers(0, 1000),
    exact=st.booleans(),
)
def test_experts_equal_their_reference_over_ragged_and_empty_groups(
    kind: Format, num_rows: int, num_held: int, first: int, seed: int, *, exact: bool
) -> None:
    experts = stack_experts([ffn(kind, 32, 64, 10 * index) for index in range(num_held)])
    random = torch.Generator().manual_seed(seed)
    scores = torch.rand((num_rows, 8), generator=random) * torch.rand(8, generator=random) ** 4
    gates, ids = scores.topk(3, dim=-1)
    hidden = normal((num_rows, 32), seed)
    found = ops.swiglu_experts(hidden, ids, gates, experts, first_expert=first, exact=exact)
    wanted = reference.swiglu_experts(
        hidden,
        ids,
        gates,
        experts.gate,
        experts.up,
        experts.down,
        experts.formats,
        64,
        first,
        exact,
    )
    close(found, wanted, exact=exact)


@pytest.mark.parametrize("exact", [True, False])
def test_a_token_gets_the_same_bits_whoever_shares_its_experts(*, exact: bool) -> None:
    experts = stack_experts([ffn(Format.Q4_1, 64, 96, 10 * index) for index in range(4)])
    hidden, scores = normal((50, 64), 1), normal((50, 4), 2)
    gates, ids = scores.softmax(-1).topk(2, dim=-1)
    together = ops.swiglu_experts(hidden, ids, gates, experts, exact=exact)
    for row in (0, 17, 49):
        one = slice(row, row + 1)
        alone = ops.swiglu_experts(hidden[one], ids[one], gates[one], experts, exact=exact)
        assert torch.equal(alone, together[one])


def test_choices_that_do_not_fit_are_refused() -> None:
    packed = ffn(Format.Q4_1, 32, 64)
    experts = stack_experts([packed])
    hidden, gates = normal((2, 32), 0), torch.ones(2, 1)
    with pytest.raises(Internal, match="must not be negative"):
        ops.swiglu_experts(hidden, torch.full((2, 1), -1), gates, experts)
    with pytest.raises(Internal, match="experts per token"):
        ops.swiglu_experts(hidden, torch.zeros((3, 1), dtype=torch.int64), gates, experts)
    with pytest.raises(FailedPrecondition, match="one shape and one format"):
        stack_experts([packed, ffn(Format.Q4_1, 32, 96)])
