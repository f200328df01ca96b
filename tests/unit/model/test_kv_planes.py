"""What a block holds, in every type and for every kind of attention."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.model.configs import ALL, FINE, LONGCAT, STEP3
from tests.unit.model.conftest import DENSE, Tiny, assert_near
from tests.unit.model.oracles import paged_logits
from understudy.errors import Internal
from understudy.model.config import ModelConfig
from understudy.model.kv_planes import DTYPES, block_bytes, quantise
from understudy.model.paged import PagedKv
from understudy.model.transformer import Transformer
from understudy.model.weights import random_weights

BLOCK_SIZE = 4
TOKENS = torch.arange(13) * 5 % 97
BLOCKS = [6, 1, 3, 0]


def _filled(config: ModelConfig, dtype: torch.dtype) -> tuple[PagedKv, list[Tensor]]:
    kv, generator = PagedKv(config, 2, BLOCK_SIZE, dtype), torch.Generator().manual_seed(4)
    rows = [
        torch.randn(BLOCK_SIZE, entry.num_heads, entry.width, generator=generator)
        for entry in config.cache_entries
    ]
    offsets = torch.arange(BLOCK_SIZE)
    kv.write(1, torch.ones(BLOCK_SIZE, dtype=torch.int64), offsets, *rows)
    return kv, rows


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("config", [DENSE, FINE, LONGCAT, STEP3], ids=lambda c: c.family)
def test_what_is_read_is_what_was_written_within_the_bound(
    config: ModelConfig, dtype: torch.dtype
) -> None:
    kv, rows = _filled(config, dtype)

    read = kv.read(1, torch.tensor([[1]]))

    relative = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}
    for stored, row in zip(read, rows, strict=True):
        error = (stored[0].transpose(0, 1) - row).abs()
        if dtype == torch.int8:
            largest = row.abs().amax(dim=-1, keepdim=True)
            assert (error <= largest / 254 * (1 + 1e-5)).all()
        else:
            # Numbers too small for float16's normal range are off by a fixed step instead.
            assert (error <= relative[dtype] * row.abs() + 2**-25 * (relative[dtype] > 0)).all()


@settings(deadline=None)
@given(st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=1, max_size=40))
def test_int8_is_off_by_at_most_half_a_scale(numbers: list[float]) -> None:
    rows = torch.tensor(numbers)[None, None]

    values, scales = quantise(rows)

    error = (values.float() * scales.unsqueeze(-1) - rows).abs()
    assert values.abs().max() <= 127
    assert (error <= scales.unsqueeze(-1) * (0.5 + 1e-4)).all()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_block_of_latents_takes_what_the_latents_take(dtype: torch.dtype) -> None:
    numbers = FINE.num_layers * BLOCK_SIZE * (12 + 6)
    scales = FINE.num_layers * BLOCK_SIZE * 2 * 4 if dtype == torch.int8 else 0

    assert block_bytes(FINE, BLOCK_SIZE, dtype) == numbers * dtype.itemsize + scales
    assert PagedKv(FINE, 2, BLOCK_SIZE, dtype).block_bytes == numbers * dtype.itemsize + scales


def test_two_attentions_of_a_layer_have_caches_of_their_own() -> None:
    assert block_bytes(LONGCAT, 1, torch.float32) == 2 * 2 * (12 + 6) * 4


def test_exported_latents_are_layer_then_entry_then_token() -> None:
    kv, rows = _filled(FINE, torch.float32)

    content = torch.frombuffer(bytearray(kv.export_block(1)), dtype=torch.float32)

    layers = content.view(FINE.num_layers, BLOCK_SIZE * 18)
    assert torch.equal(layers[1, : BLOCK_SIZE * 12].view(BLOCK_SIZE, 1, 12), rows[0])
    assert torch.equal(layers[1, BLOCK_SIZE * 12 :].view(BLOCK_SIZE, 1, 6), rows[1])
    assert layers[0].eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_exported_blocks_of_every_type_continue_alike_elsewhere(
    name: str, dtype: torch.dtype
) -> None:
    config = ALL[name]
    model = Transformer(config, random_weights(config, seed=7, deviation=0.3))
    here, there = (PagedKv(config, 8, BLOCK_SIZE, dtype) for _ in range(2))
    paged_logits(model, here, TOKENS, BLOCKS, 12)

    for block in BLOCKS:
        there.import_block(block, here.export_block(block))

    expected = paged_logits(model, here, TOKENS, BLOCKS, 13, start=12)
    assert torch.equal(paged_logits(model, there, TOKENS, BLOCKS, 13, start=12), expected)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-4), (torch.float16, 0.02), (torch.bfloat16, 0.15), (torch.int8, 0.15)],
    ids=str,
)
@pytest.mark.parametrize("name", ["llama", "qwen3", "deepseek_v3", "longcat_flash", "step3_text"])
def test_logits_stay_close_whatever_the_type_of_the_cache(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    config = ALL[name]
    tiny = Tiny(config, random_weights(config, seed=7, deviation=0.1))
    kv = PagedKv(config, 8, BLOCK_SIZE, dtype)

    logits = paged_logits(Transformer(config, tiny.weights), kv, TOKENS, BLOCKS, 5, 6, 13)

    assert_near(logits, tiny.logits(TOKENS), tolerance=tolerance)


def test_a_type_that_nothing_caches_in_is_a_bug() -> None:
    with pytest.raises(Internal, match=r"cached as torch\.int16"):
        PagedKv(DENSE, 2, BLOCK_SIZE, torch.int16)
