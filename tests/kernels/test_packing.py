"""Weights survive the kernels' layout bit for bit, and broken ones are refused by name."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.builders import ALL_FORMATS, FLOATS, GGUF_FORMATS, raw_blocks, weight
from understudy.errors import FailedPrecondition
from understudy_kernels import Format
from understudy_kernels.formats import packed_bytes
from understudy_kernels.packing import pack_dense, pack_gguf, quantise_int4, quantise_int8
from understudy_kernels.reference.unpack import unpack


@given(kind=st.sampled_from(ALL_FORMATS), num_out=st.integers(1, 40), units=st.integers(1, 3))
def test_every_format_is_unpacked_as_gguf_dequantises_it(
    kind: Format, num_out: int, units: int
) -> None:
    made = weight(kind, num_out, units * kind.unit_inputs, seed=num_out)
    found = unpack(made.packed.data, kind, made.packed.num_out, made.packed.num_in)
    torch.testing.assert_close(found, made.values, rtol=1e-6, atol=1e-7)
    assert made.packed.data.numel() == packed_bytes(kind, num_out, made.packed.num_in)


@given(num_in=st.integers(1, 70), kind=st.sampled_from(tuple(FLOATS)))
def test_dense_weights_of_any_width_are_packed(num_in: int, kind: Format) -> None:
    made = weight(kind, 5, num_in)
    assert torch.equal(unpack(made.packed.data, kind, 5, num_in), made.values)


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_own_quantisation_stays_within_half_a_step(group_size: int) -> None:
    dense = torch.randn(20, 256, generator=torch.Generator().manual_seed(1))
    steps = dense.unflatten(1, (-1, group_size)).abs().amax(-1).repeat_interleave(group_size, 1)
    for quantise, limit in ((quantise_int8, 127), (quantise_int4, 7)):
        packed = quantise(dense, group_size)
        found = unpack(packed.data, packed.format, 20, 256)
        assert bool(((found - dense).abs() <= steps / limit * 0.5 * 1.02 + 1e-6).all())


@pytest.mark.parametrize("kind", GGUF_FORMATS)
def test_a_scale_that_is_not_a_number_is_reported_with_the_tensors_name(kind: Format) -> None:
    raw = torch.from_numpy(raw_blocks(kind, 4, kind.unit_inputs, seed=0))
    offset = 208 if kind is Format.Q6_K else 0
    raw[2, offset : offset + 2] = torch.tensor([0, 0x7E], dtype=torch.uint8)
    with pytest.raises(FailedPrecondition, match=r"blk\.0\.ffn_up"):
        pack_gguf(raw, kind, "blk.0.ffn_up")


def test_weights_that_do_not_fit_their_format_are_refused() -> None:
    with pytest.raises(FailedPrecondition, match="not a multiple of 20"):
        pack_gguf(torch.zeros(2, 21, dtype=torch.uint8), Format.Q4_1)
    with pytest.raises(FailedPrecondition, match="not made of GGUF blocks"):
        pack_gguf(torch.zeros(2, 20), Format.Q4_1)
    with pytest.raises(FailedPrecondition, match="matrix of float32"):
        pack_dense(torch.zeros(3, dtype=torch.float64))
    with pytest.raises(FailedPrecondition, match="no groups of 48"):
        quantise_int8(torch.zeros(2, 96), 48)
    with pytest.raises(FailedPrecondition, match="not finite"):
        pack_dense(torch.tensor([[float("nan")]]))
