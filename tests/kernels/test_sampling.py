"""The sampling tail chooses the reference's token, whatever is kept of the distribution."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.builders import generator, normal
from understudy.errors import Internal
from understudy_kernels import ops
from understudy_kernels.reference.sampling import sample_tokens as reference


def params(
    temperature: list[float], top_k: list[int], top_p: list[float], uniform: list[float]
) -> tuple[Tensor, ...]:
    return (
        torch.tensor(temperature, dtype=torch.float64),
        torch.tensor(top_k, dtype=torch.int64),
        torch.tensor(top_p, dtype=torch.float64),
        torch.tensor(uniform, dtype=torch.float64),
    )


def check(logits: Tensor, mask: Tensor | None, chosen: tuple[Tensor, ...]) -> None:
    found, wanted = ops.sample_tokens(logits, mask, *chosen), reference(logits, mask, *chosen)
    assert torch.equal(found[0], wanted[0])
    for ours, theirs in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


ROW = st.tuples(
    st.sampled_from((0.0, 1e-6, 0.3, 1.0, 2.5)),
    st.sampled_from((0, 1, 2, 50, 10**6)),
    st.sampled_from((1e-9, 0.1, 0.9, 0.999999, 1.0)),
    st.floats(0, 1, exclude_max=True),
)


@settings(max_examples=120)
@given(
    rows=st.lists(ROW, max_size=4),
    vocab_size=st.sampled_from((1, 2, 31, 100, 5000)),
    spread=st.sampled_from((0.1, 1.0, 8.0)),
    is_masked=st.booleans(),
    seed=st.integers(0, 100),
)
def test_tokens_are_those_of_the_reference(
    rows: list[tuple[float, int, float, float]],
    vocab_size: int,
    spread: float,
    seed: int,
    *,
    is_masked: bool,
) -> None:
    logits = normal((len(rows), vocab_size), seed) * spread
    mask = None
    if is_masked:
        words = (vocab_size + 31) // 32
        mask = torch.randint(-(2**31), 2**31, (len(rows), words), generator=generator(seed)).int()
        mask[:, 0] |= 1
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
    check(logits, mask, params(*columns))


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (40, 1.0), (0, 0.95), (1000, 0.5), (0, 0.999999)]
)
def test_whole_vocabularies_are_sampled_as_the_reference_does(top_k: int, top_p: float) -> None:
    uniforms = torch.rand(16, generator=generator(9), dtype=torch.float64).tolist()
    logits = normal((16, 50_257), 8) * 3
    check(logits, None, params([0.8] * 16, [top_k] * 16, [top_p] * 16, uniforms))


def test_equal_logits_keep_the_order_of_their_ids() -> None:
    logits = torch.zeros(4, 64)
    check(logits, None, params([1.0] * 4, [4] * 4, [1.0] * 4, [0.0, 0.3, 0.6, 0.99]))


def test_a_mask_shorter_than_the_vocabulary_forbids_the_rest() -> None:
    logits = torch.arange(70.0)[None]
    mask = torch.tensor([[0b100]], dtype=torch.int32)
    tokens, logprobs, margins, losses = ops.sample_tokens(
        logits, mask, *params([0.0], [0], [1.0], [0.0])
    )
    assert tokens.tolist() == [2]
    assert margins.tolist() == [1.0]
    assert math.isclose(float(losses[0]), 1.0, rel_tol=1e-6)
    assert math.isclose(float(logprobs[0]), float(logits.log_softmax(-1)[0, 2]), rel_tol=1e-5)


def test_what_cannot_be_sampled_is_refused() -> None:
    good = params([0.0], [0], [1.0], [0.0])
    with pytest.raises(Internal, match="logits of row 0 are not numbers"):
        ops.sample_tokens(torch.tensor([[0.0] * 20 + [math.nan]]), None, *good)
    with pytest.raises(Internal, match="mask of row 0 allows no token"):
        ops.sample_tokens(torch.zeros(1, 8), torch.zeros(1, 1, dtype=torch.int32), *good)
    with pytest.raises(Internal, match="row 0 has parameters out of range"):
        ops.sample_tokens(torch.zeros(1, 8), None, *params([0.5], [0], [0.0], [0.0]))
    with pytest.raises(Internal, match="float64"):
        ops.sample_tokens(torch.zeros(1, 8), None, good[0].float(), *good[1:])
