"""SwiGLU and its experts: against the reference over ragged and empty groups."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.builders import ffn, normal
from understudy.errors import FailedPrecondition, Internal
from understudy_kernels import Format, PackedFfn, PackedLinear, ops
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


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_more_rows_than_lie_open_at_once_get_the_same_bits(kind: Format, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    # 3,000 choices of 256 + 2 x 512 numbers are computed in turns, one expert has most of them.
    experts = stack_experts([ffn(kind, 256, 512, 10 * index) for index in range(4)])
    hidden, scores = normal((1500, 256), 1), normal((1500, 4), 2) + torch.tensor([3.0, 0, 0, 0])
    gates, ids = scores.softmax(-1).topk(2, dim=-1)
    together = ops.swiglu_experts(hidden, ids, gates, experts)
    some = slice(700, 705)
    alone = ops.swiglu_experts(hidden[some], ids[some], gates[some].contiguous(), experts)
    assert torch.equal(alone, together[some])


def test_a_choice_of_weight_zero_asks_for_nothing() -> None:
    broken, good = ffn(Format.F32, 32, 64), ffn(Format.F32, 32, 64, 10)
    broken.down.data.view(torch.float32).fill_(float("nan"))
    experts, hidden = stack_experts([broken, good]), normal((3, 32), 1)
    ids, gates = torch.tensor([[0, 1]] * 3), torch.tensor([[0.0, 1.0]] * 3)
    found = ops.swiglu_experts(hidden, ids, gates, experts, exact=True)
    close(found, ops.swiglu(hidden, good, exact=True), exact=True)


def test_experts_that_lie_behind_one_another_are_not_copied() -> None:
    made = [ffn(Format.Q4_1, 32, 64, 10 * index) for index in range(3)]
    copied = stack_experts(made)
    rows = [
        PackedFfn(
            *(
                PackedLinear(stack[index], each.format, each.num_out, each.num_in)
                for stack, each in zip(
                    (copied.gate, copied.up, copied.down), (one.gate, one.up, one.down), strict=True
                )
            )
        )
        for index, one in enumerate(made)
    ]
    assert copied.gate.data_ptr() != made[0].gate.data.data_ptr()
    assert stack_experts(rows).gate.data_ptr() == copied.gate.data_ptr()
    assert torch.equal(stack_experts(rows[1:]).down, copied.down[1:])
    assert torch.equal(stack_experts(rows[::-1]).up, copied.up.flip(0))


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
