"""Latents in the paged cache: storage, attention against its reference, decode equal to prefill."""

from dataclasses import astuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.builders import generator, normal, weight
from understudy.errors import Internal
from understudy_kernels import Format, LatentView, PackedHeads, Rows, ops
from understudy_kernels.packing import pack_heads
from understudy_kernels.reference import latent as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
KINDS = (Format.F32, Format.BF16, Format.Q8_0, Format.Q4_1, Format.Q4_K)
NUM_BLOCKS, BLOCK_SIZE = 40, 16


def empty_cache(dtype: torch.dtype, rank: int, rope_dim: int) -> LatentView:
    # A layer of an engine's storage: latents and keys of other layers lie between.
    latents = torch.zeros((NUM_BLOCKS, 3, BLOCK_SIZE, 1, rank), dtype=dtype)
    keys = torch.zeros((NUM_BLOCKS, 3, BLOCK_SIZE, 1, rope_dim), dtype=dtype)
    if dtype != torch.int8:
        return LatentView(keys[:, 1], latents[:, 1])
    scales = torch.zeros((NUM_BLOCKS, 3, 2, BLOCK_SIZE, 1))
    return LatentView(keys[:, 1], latents[:, 1], scales[:, 1, 0], scales[:, 1, 1])


def filled_cache(dtype: torch.dtype, rank: int, rope_dim: int) -> LatentView:
    cache = empty_cache(dtype, rank, rope_dim)
    pairs = ((cache.rope_keys, cache.rope_scales), (cache.latents, cache.latent_scales))
    for seed, (values, scales) in enumerate(pairs):
        if scales is None:
            values.copy_(normal(tuple(values.shape), seed))
        else:
            values.copy_(torch.randint(-127, 128, values.shape, generator=generator(seed)))
            scales.copy_(torch.rand(scales.shape, generator=generator(seed + 2)) * 0.02)
    return cache


def heads_of(kind: Format, num_heads: int, nope_dim: int, value_dim: int, rank: int) -> PackedHeads:
    up = weight(kind, num_heads * (nope_dim + value_dim), rank).packed
    return pack_heads(up, num_heads, nope_dim, value_dim)


def attend_by_reference(
    query: Tensor, heads: PackedHeads, cache: LatentView, rows: Rows, scale: float
) -> Tensor:
    up = (heads.up.data, heads.up.format, heads.value_dim)
    where = (rows.tables, rows.sequences, rows.lengths)
    parts = (cache.rope_keys, cache.latents, cache.rope_scales, cache.latent_scales)
    return reference.latent_attention(query, *up, *parts, *where, scale)


def close(found: Tensor, wanted: Tensor) -> None:
    scale = float(wanted.abs().max()) if wanted.numel() else 1.0
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5 * max(scale, 1e-6))


def tables(num_sequences: int, width: int) -> Tensor:
    blocks = torch.randperm(NUM_BLOCKS, generator=generator(4))
    return blocks[: num_sequences * width].view(num_sequences, width).int()


@settings(max_examples=60)
@given(
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(KINDS),
    num_heads=st.sampled_from((1, 3, 16, 50)),
    dims=st.sampled_from(((32, 16), (7, 9), (80, 48))),
    rope_dim=st.sampled_from((4, 18)),
    lengths=st.lists(st.integers(0, 20 * BLOCK_SIZE), min_size=0, max_size=2),
    num_threads=st.sampled_from((1, 2)),
)
def test_decode_attention_equals_its_reference(
    dtype: torch.dtype,
    kind: Format,
    num_heads: int,
    dims: tuple[int, int],
    rope_dim: int,
    lengths: list[int],
    num_threads: int,
) -> None:
    torch.set_num_threads(num_threads)
    rank = 256 if kind is Format.Q4_K else 96
    cache, heads = filled_cache(dtype, rank, rope_dim), heads_of(kind, num_heads, *dims, rank)
    query = normal((len(lengths), num_heads, dims[0] + rope_dim), 3)
    sequences = torch.arange(len(lengths), dtype=torch.int32)
    rows = Rows(tables(2, 20), sequences, torch.tensor(lengths, dtype=torch.int32))
    found = ops.latent_attention(query, heads, cache, rows, 0.1)
    wanted = attend_by_reference(query, heads, cache, rows, 0.1)
    close(found, wanted)


@pytest.mark.parametrize("rank", [20, 33])
def test_latents_that_fill_no_block_of_weights_are_attended(rank: int) -> None:
    cache, heads = filled_cache(torch.float32, rank, 6), heads_of(Format.F32, 5, 7, 9, rank)
    query = normal((2, 5, 13), 3)
    rows = Rows(
        tables(2, 5),
        torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([70, 1], dtype=torch.int32),
    )
    found = ops.latent_attention(query, heads, cache, rows, 0.3)
    wanted = attend_by_reference(query, heads, cache, rows, 0.3)
    close(found, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_heads", [4, 16])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_has_the_same_bits_decoded_alone_and_in_its_prompt(
    dtype: torch.dtype, num_heads: int, num_threads: int
) -> None:
    torch.set_num_threads(num_threads)
    cache, heads = filled_cache(dtype, 64, 16), heads_of(Format.Q4_1, num_heads, 32, 16, 64)
    num_rows = 300
    query = normal((num_rows, num_heads, 48), 3)
    table = tables(1, 20)
    lengths = torch.arange(1, num_rows + 1, dtype=torch.int32)
    rows = Rows(table, torch.zeros(num_rows, dtype=torch.int32), lengths)
    together = ops.latent_attention(query, heads, cache, rows, 0.2)
    for row in (0, 5, 63, 64, 255, 256, 299):
        one = slice(row, row + 1)
        alone = Rows(table, torch.zeros(1, dtype=torch.int32), lengths[one].contiguous())
        found = ops.latent_attention(query[one], heads, cache, alone, 0.2)
        assert torch.equal(found, together[one])


def test_more_rows_than_lie_open_at_once_are_computed_in_turns() -> None:
    # Queries of 1,000 rows with the projection absorbed would take 64 MiB.
    cache, heads = filled_cache(torch.float32, 512, 16), heads_of(Format.BF16, 32, 16, 16, 512)
    query = normal((1000, 32, 32), 3)
    sequences = torch.arange(1000, dtype=torch.int32) % 2
    rows = Rows(tables(2, 5), sequences, torch.full((1000,), 3, dtype=torch.int32))
    together = ops.latent_attention(query, heads, cache, rows, 0.2)
    for row in (0, 255, 256, 999):
        one = slice(row, row + 1)
        alone = Rows(rows.tables, sequences[one].clone(), rows.lengths[one].clone())
        found = ops.latent_attention(query[one], heads, cache, alone, 0.2)
        assert torch.equal(found, together[one])


def test_prompt_chunks_and_decodes_share_a_step() -> None:
    cache, heads = filled_cache(torch.bfloat16, 64, 8), heads_of(Format.F32, 6, 16, 32, 64)
    sequences = torch.tensor([0] * 10 + [1] + [0], dtype=torch.int32)
    lengths = torch.tensor([*range(90, 100), 200, 3], dtype=torch.int32)
    rows, query = Rows(tables(2, 20), sequences, lengths), normal((12, 6, 24), 3)
    found = ops.latent_attention(query, heads, cache, rows, 0.125)
    wanted = attend_by_reference(query, heads, cache, rows, 0.125)
    close(found, wanted)


def test_a_key_that_is_no_number_reaches_every_row_that_sees_it_and_no_other() -> None:
    cache, heads = filled_cache(torch.float32, 32, 8), heads_of(Format.F32, 4, 16, 16, 32)
    table = tables(1, 10)
    cache.rope_keys[int(table[0, 5]), 7] = float("nan")  # token 87
    lengths = torch.arange(70, 118, dtype=torch.int32)
    rows = Rows(table, torch.zeros(48, dtype=torch.int32), lengths)
    found = ops.latent_attention(normal((48, 4, 24), 3), heads, cache, rows, 0.125)
    assert torch.equal(found.isnan().flatten(1).any(dim=1), lengths > 87)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [True, False])
def test_rotation_and_storage_equal_their_reference(
    dtype: torch.dtype, *, interleaved: bool
) -> None:
    found_cache, wanted_cache = empty_cache(dtype, 40, 12), empty_cache(dtype, 40, 12)
    query, compressed = normal((7, 3 * 20), 1), normal((7, 52), 2)
    phase, norm = normal((7, 6), 3), normal((40,), 4)
    slots = torch.tensor([0, 5, 16, 17, 100, 639, 33])
    angles = (phase.cos(), phase.sin())
    found = ops.rotate_and_cache_latent(
        query,
        compressed,
        angles,
        found_cache,
        slots,
        3,
        norm,
        eps=1e-6,
        query_scale=1.5,
        latent_scale=0.75,
        interleaved=interleaved,
    )
    wanted = reference.rotate_and_cache_latent(
        query,
        compressed,
        *angles,
        wanted_cache.rope_keys,
        wanted_cache.latents,
        wanted_cache.rope_scales,
        wanted_cache.latent_scales,
        slots,
        3,
        norm,
        1e-6,
        1.5,
        0.75,
        interleaved,
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    step = 1 if dtype == torch.int8 else 1e-5
    for ours, theirs in zip(astuple(found_cache), astuple(wanted_cache), strict=True):
        if ours is not None:
            torch.testing.assert_close(ours.float(), theirs.float(), rtol=1e-2, atol=step)


def test_input_that_does_not_fit_is_refused() -> None:
    cache, heads = filled_cache(torch.float32, 32, 8), heads_of(Format.F32, 2, 16, 16, 32)
    one = torch.ones(1, dtype=torch.int32)
    rows = Rows(tables(1, 1), one - 1, one)
    with pytest.raises(Internal, match="packed must be"):
        ops.latent_attention(normal((1, 3, 24), 0), heads, cache, rows, 1.0)
    with pytest.raises(Internal, match="cannot be"):
        ops.latent_attention(normal((1, 2, 8), 0), heads, cache, rows, 1.0)
    with pytest.raises(Internal, match="sees 17 tokens, its table holds 16"):
        beyond = Rows(rows.tables, one - 1, one * 17)
        ops.latent_attention(normal((1, 2, 24), 0), heads, cache, beyond, 1.0)
    angles, norm = (torch.ones(1, 4), torch.zeros(1, 4)), torch.ones(32)
    arguments = (normal((1, 40), 0), angles, cache)
    with pytest.raises(Internal, match="slot 640 is outside 40 blocks of 16"):
        ops.rotate_and_cache_latent(
            normal((1, 48), 0), *arguments, torch.tensor([640]), 2, norm, eps=1e-6
        )
    with pytest.raises(Internal, match="cannot be of 2 heads"):
        ops.rotate_and_cache_latent(
            normal((1, 16), 0), *arguments, torch.tensor([0]), 2, norm, eps=1e-6
        )
    with pytest.raises(Internal, match="cached once for all heads"):
        two = LatentView(torch.zeros(2, 4, 2, 8), torch.zeros(2, 4, 2, 32))
        ops.latent_attention(normal((1, 2, 24), 0), heads, two, rows, 1.0)
