"""Linear layers: every format and row count against the reference; rows never see each other."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.builders import ALL_FORMATS, GGUF_FORMATS, normal, weight
from understudy.errors import Internal
from understudy_kernels import Format, PackedLinear, ops
from understudy_kernels.reference import linear as reference

ROWS = (0, 1, 2, 3, 7, 33)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    scale = float(wanted.abs().max()) if wanted.numel() else 1.0
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5 * max(scale, 1e-3))


@settings(max_examples=150)
@given(
    kind=st.sampled_from(ALL_FORMATS),
    num_rows=st.sampled_from(ROWS),
    num_out=st.integers(1, 100),
    units=st.integers(1, 5),
    exact=st.booleans(),
)
def test_linear_equals_its_reference(
    kind: Format, num_rows: int, num_out: int, units: int, *, exact: bool
) -> None:
    made = weight(kind, num_out, units * kind.unit_inputs, seed=units)
    hidden = normal((num_rows, made.packed.num_in), seed=num_rows)
    wanted = reference.quantised_linear(hidden, made.packed.data, kind, num_out, None, None, exact)
    close(ops.linear(hidden, made.packed, exact=exact), wanted)
    if exact:
        close(wanted, hidden @ made.values.T)


@pytest.mark.parametrize("kind", [Format.F32, Format.F16, Format.BF16])
@pytest.mark.parametrize("num_in", [1, 5, 31, 45, 300])
def test_dense_formats_take_any_width(kind: Format, num_in: int) -> None:
    made = weight(kind, 19, num_in)
    hidden = normal((7, num_in), seed=3)
    close(ops.linear(hidden, made.packed), hidden @ made.values.T)


@pytest.mark.parametrize("kind", ALL_FORMATS)
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_has_the_same_bits_alone_and_among_many(
    kind: Format, *, exact: bool, num_threads: int
) -> None:
    torch.set_num_threads(num_threads)
    made = weight(kind, 210, 1024 if kind.is_quantised else 1000, seed=4)
    hidden = normal((300, made.packed.num_in), seed=5)
    together = ops.linear(hidden, made.packed, exact=exact)
    for start, stop in ((0, 1), (7, 9), (40, 43), (100, 233), (299, 300)):
        alone = ops.linear(hidden[start:stop].contiguous(), made.packed, exact=exact)
        assert torch.equal(alone, together[start:stop])


def test_bias_and_residual_are_added() -> None:
    made = weight(Format.Q4_1, 40, 64)
    hidden, bias, residual = normal((3, 64), 0), normal((40,), 1), normal((3, 40), 2)
    plain = ops.linear(hidden, made.packed)
    found = ops.linear(hidden, made.packed, bias=bias, residual=residual)
    torch.testing.assert_close(found, plain + bias + residual)


@pytest.mark.parametrize("kind", ALL_FORMATS)
def test_embedding_returns_the_rows_of_the_table(kind: Format) -> None:
    made = weight(kind, 50, 512)
    ids = torch.tensor([0, 49, 17, 17])
    torch.testing.assert_close(ops.embedding(ids, made.packed), made.values[ids])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", [*GGUF_FORMATS, Format.BF16])
@pytest.mark.parametrize("exact", [True, False])
def test_broken_activations_stay_broken(value: float, kind: Format, *, exact: bool) -> None:
    made = weight(kind, 32, 256, seed=6)
    hidden = normal((2, 256), seed=7)
    hidden[1, 100] = value
    found = ops.linear(hidden, made.packed, exact=exact)
    assert bool(found[0].isfinite().all())
    assert not bool(found[1].isfinite().any())


def test_zeros_stay_zero() -> None:
    made = weight(Format.Q4_1, 32, 64)
    assert torch.equal(ops.linear(torch.zeros(2, 64), made.packed), torch.zeros(2, 32))


@settings(max_examples=30)
@given(num_rows=st.sampled_from(ROWS), size=st.integers(1, 70))
def test_norm_of_a_sum_equals_its_reference(num_rows: int, size: int) -> None:
    hidden, residual = normal((num_rows, size), 0), normal((num_rows, size), 1)
    scale = normal((size,), 2)
    found = ops.add_rms_norm(hidden, residual, scale, 1e-5)
    wanted = reference.add_rms_norm(hidden, residual, scale, 1e-5)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("exact", [True, False])
def test_projections_of_mixed_formats_share_one_norm(num_rows: int, *, exact: bool) -> None:
    kinds = (Format.Q4_K, Format.BF16, Format.Q6_K)
    made = [
        weight(kind, out, 256, out).packed for kind, out in zip(kinds, (48, 20, 33), strict=True)
    ]
    hidden, norm, bias = normal((num_rows, 256), 1), normal((256,), 2), normal((101,), 3)
    found = ops.normed_linears(hidden, norm, 1e-5, made, bias=bias, exact=exact)
    wanted = reference.normed_linears(
        hidden, norm, 1e-5, [m.data for m in made], kinds, (48, 20, 33), bias, exact
    )
    # Rounding to int8 may fall on the other side where the norms differ in their last bit.
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 if exact else 3e-2)


def test_input_that_does_not_fit_is_refused_with_a_sentence() -> None:
    made = weight(Format.Q4_1, 32, 64).packed
    good = torch.zeros(2, 64)
    for hidden, sentence in (
        (good.double(), "hidden must be float32"),
        (good[0], "2 dimensions"),
        (torch.zeros(64, 2).T, "contiguous"),
        (torch.zeros(2, 96), "contiguous bytes"),
        (torch.zeros(2, 65), "units of 32"),
    ):
        with pytest.raises(Internal, match=sentence):
            ops.linear(hidden, made)
    with pytest.raises(Internal, match="residual must have the result's shape"):
        ops.linear(good, made, residual=torch.zeros(2, 33))
    with pytest.raises(Internal, match="bias must have 32 values"):
        ops.linear(good, made, bias=torch.zeros(3))
    with pytest.raises(Internal, match="id 32 is outside a table of 32 rows"):
        ops.embedding(torch.tensor([32]), made)
    with pytest.raises(Internal, match="format 9 does not exist"):
        ops.linear(good, PackedLinear(made.data, 9, 32, 64))  # type: ignore[arg-type]
