"""The paged cache: rotation and storage, attention over block tables, decode equal to prefill."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.builders import generator, normal
from understudy.errors import Internal
from understudy_kernels import CacheView, Rows, ops
from understudy_kernels.reference import attention as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
NUM_BLOCKS, BLOCK_SIZE = 40, 16


def empty_cache(dtype: torch.dtype, num_kv: int, dim: int) -> CacheView:
    # A layer of an engine's storage: keys and values lie interleaved with other layers.
    storage = torch.zeros((NUM_BLOCKS, 3, 2, BLOCK_SIZE, num_kv, dim), dtype=dtype)
    if dtype != torch.int8:
        return CacheView(storage[:, 1, 0], storage[:, 1, 1])
    scales = torch.zeros(storage.shape[:-1])
    return CacheView(storage[:, 1, 0], storage[:, 1, 1], scales[:, 1, 0], scales[:, 1, 1])


def filled_cache(dtype: torch.dtype, num_kv: int, dim: int) -> CacheView:
    cache = empty_cache(dtype, num_kv, dim)
    if dtype == torch.int8:
        for values, scales in ((cache.keys, cache.key_scales), (cache.values, cache.value_scales)):
            values.copy_(torch.randint(-127, 128, values.shape, generator=generator(1)))
            assert scales is not None
            scales.copy_(torch.rand(scales.shape, generator=generator(2)) * 0.02)
        return cache
    cache.keys.copy_(normal(tuple(cache.keys.shape), 1))
    cache.values.copy_(normal(tuple(cache.values.shape), 2))
    return cache


def parts(cache: CacheView) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    return cache.keys, cache.values, cache.key_scales, cache.value_scales


def tables(num_sequences: int, width: int, seed: int) -> Tensor:
    blocks = torch.randperm(NUM_BLOCKS, generator=generator(seed))
    return blocks[: num_sequences * width].view(num_sequences, width).int()


@settings(max_examples=80)
@given(
    dtype=st.sampled_from(DTYPES),
    heads=st.sampled_from(((1, 1), (9, 3), (8, 1), (30, 1), (4, 4))),
    dim=st.sampled_from((8, 20, 64, 80)),
    lengths=st.lists(st.integers(0, 20 * BLOCK_SIZE), min_size=0, max_size=2),
    num_threads=st.sampled_from((1, 2)),
)
def test_decode_attention_equals_its_reference(
    dtype: torch.dtype, heads: tuple[int, int], dim: int, lengths: list[int], num_threads: int
) -> None:
    torch.set_num_threads(num_threads)
    cache = filled_cache(dtype, heads[1], dim)
    query = normal((len(lengths), heads[0], dim), 3)
    sequences = torch.arange(len(lengths), dtype=torch.int32)
    rows = Rows(tables(2, 20, 4), sequences, torch.tensor(lengths, dtype=torch.int32))
    found = ops.paged_attention(query, cache, rows, dim**-0.5)
    wanted = reference.paged_attention(
        query, *parts(cache), rows.tables, rows.sequences, rows.lengths, dim**-0.5
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(9, 3), (30, 1)])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_has_the_same_bits_decoded_alone_and_in_its_prompt(
    dtype: torch.dtype, heads: tuple[int, int], num_threads: int
) -> None:
    torch.set_num_threads(num_threads)
    cache = filled_cache(dtype, heads[1], 32)
    num_rows = 300
    query = normal((num_rows, heads[0], 32), 3)
    table = tables(1, 20, 4)
    lengths = torch.arange(1, num_rows + 1, dtype=torch.int32)
    rows = Rows(table, torch.zeros(num_rows, dtype=torch.int32), lengths)
    together = ops.paged_attention(query, cache, rows, 0.2)
    for row in (0, 5, 63, 64, 255, 256, 299):
        one = slice(row, row + 1)
        alone = Rows(table, torch.zeros(1, dtype=torch.int32), lengths[one].contiguous())
        assert torch.equal(ops.paged_attention(query[one], cache, alone, 0.2), together[one])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_key_that_is_no_number_reaches_every_row_that_sees_it_and_no_other(
    dtype: torch.dtype,
) -> None:
    cache = filled_cache(dtype, 3, 64)
    table = tables(1, 10, 4)
    cache.keys[int(table[0, 5]), 7] = float("nan")  # token 87
    lengths = torch.arange(70, 118, dtype=torch.int32)
    query = normal((48, 9, 64), 3)
    rows = Rows(table, torch.zeros(48, dtype=torch.int32), lengths)
    together = ops.paged_attention(query, cache, rows, 0.125)
    assert torch.equal(together.isnan().flatten(1).any(dim=1), lengths > 87)
    for row in (17, 18):
        alone = Rows(table, torch.zeros(1, dtype=torch.int32), lengths[row : row + 1].clone())
        found = ops.paged_attention(query[row : row + 1], cache, alone, 0.125)
        assert bool(found.isnan().any()) is (row == 18)


def test_prompt_chunks_and_decodes_share_a_step() -> None:
    cache = filled_cache(torch.float32, 3, 64)
    sequences = torch.tensor([0] * 10 + [1] + [0], dtype=torch.int32)
    lengths = torch.tensor([*range(90, 100), 200, 3], dtype=torch.int32)
    rows = Rows(tables(2, 20, 4), sequences, lengths)
    query = normal((12, 9, 64), 3)
    found = ops.paged_attention(query, cache, rows, 0.125)
    wanted = reference.paged_attention(query, *parts(cache), rows.tables, sequences, lengths, 0.125)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_norms", [True, False])
def test_rotation_and_storage_equal_their_reference(dtype: torch.dtype, *, has_norms: bool) -> None:
    found_cache, wanted_cache = empty_cache(dtype, 2, 32), empty_cache(dtype, 2, 32)
    projected = normal((7, 8 * 32), 1)
    phase = normal((7, 16), 2)
    norms = (normal((32,), 3), normal((32,), 4)) if has_norms else (None, None)
    slots = torch.tensor([0, 5, 16, 17, 100, 639, 33])
    angles = (phase.cos(), phase.sin())
    found = ops.rotate_and_cache(
        projected, angles, found_cache, slots, 4, query_norm=norms[0], key_norm=norms[1], eps=1e-6
    )
    wanted = reference.rotate_and_cache(
        projected, *angles, *parts(wanted_cache), slots, 4, *norms, 1e-6
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    step = 1 if dtype == torch.int8 else 0
    for ours, theirs in zip(parts(found_cache), parts(wanted_cache), strict=True):
        if ours is not None and theirs is not None:
            torch.testing.assert_close(
                ours.float(), theirs.float(), rtol=1e-2, atol=max(step, 1e-5)
            )


def test_tables_and_slots_outside_the_cache_are_refused() -> None:
    cache = filled_cache(torch.float32, 1, 16)
    query = normal((1, 2, 16), 0)

    def attend(table: list[int], sequence: int, length: int) -> Tensor:
        rows = Rows(
            *(torch.tensor(each, dtype=torch.int32) for each in ([table], [sequence], [length]))
        )
        return ops.paged_attention(query, cache, rows, 1.0)

    for call, sentence in (
        (([0, 40], 0, 17), "names block 40 of 40"),
        (([0, -1], 0, 17), "names block -1 of 40"),
        (([0, 1], 1, 3), "names sequence 1 of 1"),
        (([0, 1], 0, 33), "sees 33 tokens, its table holds 32"),
    ):
        with pytest.raises(Internal, match=sentence):
            attend(*call)
    assert attend([0, 40], 0, 16).shape == (1, 2, 16)
    with pytest.raises(Internal, match="slot 640 is outside 40 blocks of 16"):
        ops.rotate_and_cache(
            normal((1, 64), 0), (torch.ones(1, 8), torch.zeros(1, 8)), cache, torch.tensor([640]), 2
        )
    with pytest.raises(Internal, match="key_scales must be float32"):
        int8 = empty_cache(torch.int8, 1, 16)
        rows = Rows(tables(1, 1, 0), *(torch.ones(1, dtype=torch.int32) - 1,) * 2)
        ops.paged_attention(query, CacheView(int8.keys, int8.values), rows, 1.0)
