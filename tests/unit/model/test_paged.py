from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.model.conftest import DENSE, Tiny, assert_near
from understudy.errors import FailedPrecondition, Internal
from understudy.model.attention import PackedCausal
from understudy.model.config import ModelConfig
from understudy.model.paged import PagedContext, PagedKv, PagedSequence
from understudy.model.transformer import Transformer
from understudy.model.weights import random_weights

BLOCK_SIZE = 4
TINY = Tiny(DENSE, random_weights(DENSE, seed=7, deviation=0.3))


def _step(
    model: Transformer, kv: PagedKv, parts: Sequence[tuple[Tensor, PagedSequence]]
) -> list[Tensor]:
    """Advance sequences by the given rows of their tokens; return the logits of each."""
    tokens = torch.cat([tokens[seq.num_cached : seq.end] for tokens, seq in parts])
    positions = torch.cat([torch.arange(seq.num_cached, seq.end) for _, seq in parts])
    context = PagedContext(kv, [seq for _, seq in parts])
    with torch.inference_mode():
        logits = model.logits(model.forward(tokens, positions, context))
    return list(logits.split([seq.num_new for _, seq in parts]))


def test_prefill_and_decode_equal_the_packed_reference(tiny: Tiny) -> None:
    model, kv = Transformer(tiny.config, tiny.weights), PagedKv(tiny.config, 8, BLOCK_SIZE)
    tokens, blocks = torch.arange(11), [6, 1, 3]

    logits = _step(model, kv, [(tokens, PagedSequence(blocks, 0, 8))])
    for position in range(8, 11):
        logits += _step(model, kv, [(tokens, PagedSequence(blocks, position, 1))])

    assert_near(torch.cat(logits), tiny.logits(tokens), tolerance=1e-4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_mix_of_chunks_and_decodes_equals_the_packed_reference(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 17), min_size=1, max_size=4))
    blocks = iter(data.draw(st.permutations(range(20))))
    tables = [[next(blocks) for _ in range(-(-length // BLOCK_SIZE))] for length in lengths]
    texts = [torch.arange(length) * (number + 3) % 97 for number, length in enumerate(lengths)]
    model, kv = Transformer(TINY.config, TINY.weights), PagedKv(TINY.config, 20, BLOCK_SIZE)
    done = [0] * len(lengths)
    logits: list[list[Tensor]] = [[] for _ in lengths]

    while done != lengths:
        waiting = [number for number, length in enumerate(lengths) if done[number] < length]
        chosen = data.draw(st.lists(st.sampled_from(waiting), min_size=1, unique=True))
        parts = []
        for number in chosen:
            num_new = data.draw(st.integers(1, lengths[number] - done[number]))
            sequence = PagedSequence(tables[number], done[number], num_new)
            parts.append((texts[number], sequence))
        for number, rows in zip(chosen, _step(model, kv, parts), strict=True):
            logits[number].append(rows)
            done[number] += rows.shape[0]

    for text, rows in zip(texts, logits, strict=True):
        assert_near(torch.cat(rows), TINY.logits(text), tolerance=1e-4)


def test_exported_blocks_continue_a_sequence_in_another_worker(dense: Tiny) -> None:
    model = Transformer(dense.config, dense.weights)
    tokens = torch.arange(9)
    here, there = PagedKv(dense.config, 4, BLOCK_SIZE), PagedKv(dense.config, 9, BLOCK_SIZE)
    _step(model, here, [(tokens, PagedSequence([2, 0], 0, 8))])

    for source, target in ((2, 5), (0, 7)):
        there.import_block(target, here.export_block(source))
    (logits,) = _step(model, there, [(tokens, PagedSequence([5, 7, 1], 8, 1))])

    assert_near(logits, dense.logits(tokens)[8:], tolerance=1e-4)


def test_exported_bytes_are_layer_then_kv_then_head_then_token(dense_config: ModelConfig) -> None:
    kv = PagedKv(dense_config, 2, BLOCK_SIZE)
    key, value = torch.full((1, 2, 8), 1.0), torch.full((1, 2, 8), 2.0)
    kv.write(1, torch.tensor([1]), torch.tensor([3]), key, value)

    content = torch.frombuffer(bytearray(kv.export_block(1)), dtype=torch.float32)

    layers = content.view(3, 2, 2, BLOCK_SIZE, 8)
    assert kv.block_bytes == 3 * 2 * BLOCK_SIZE * 2 * 8 * 4
    assert layers[1, 0, :, 3].eq(1).all()
    assert layers[1, 1, :, 3].eq(2).all()
    assert layers.sum() == 16 * 3


def test_half_precision_storage_stays_close(dense: Tiny) -> None:
    model = Transformer(dense.config, dense.weights)
    kv = PagedKv(dense.config, 4, BLOCK_SIZE, torch.float16)
    tokens = torch.arange(9)

    (logits,) = _step(model, kv, [(tokens, PagedSequence([2, 0, 1], 0, 9))])

    assert kv.block_bytes == 3 * 2 * BLOCK_SIZE * 2 * 8 * 2
    assert (logits.argmax(-1) == dense.logits(tokens).argmax(-1)).float().mean() > 0.8


def test_a_sequence_never_reads_the_blocks_of_another(dense: Tiny) -> None:
    model = Transformer(dense.config, dense.weights)
    tokens = torch.arange(6)
    kv = PagedKv(dense.config, 6, BLOCK_SIZE)
    parts = [(tokens, PagedSequence([0, 1], 0, 6)), (tokens[:1], PagedSequence([3], 0, 1))]
    poison = torch.full((kv.block_bytes // 4,), torch.nan).numpy().tobytes()
    for block in (2, 4, 5):
        kv.import_block(block, poison)

    both = _step(model, kv, parts)

    assert all(rows.isfinite().all() for rows in both)


@pytest.mark.parametrize("size", [0, 1, 1 << 16])
def test_block_of_another_size_is_refused(size: int, dense_config: ModelConfig) -> None:
    with pytest.raises(FailedPrecondition, match=f"has 1536 bytes, the given one {size}"):
        PagedKv(dense_config, 1, BLOCK_SIZE).import_block(0, bytes(size))


@pytest.mark.parametrize(
    ("sequence", "said"),
    [
        (PagedSequence([0], 0, 5), "cannot take 5 new tokens after 0"),
        (PagedSequence([0], 0, 0), "cannot take 0 new tokens"),
        (PagedSequence([0], -1, 2), "cannot take 2 new tokens after -1"),
        (PagedSequence([2], 0, 1), "Block 2 does not exist"),
        (PagedSequence([-1], 0, 1), "Block -1 does not exist"),
    ],
)
def test_block_table_that_does_not_fit_is_a_bug(
    sequence: PagedSequence, said: str, dense_config: ModelConfig
) -> None:
    with pytest.raises(Internal, match=said):
        PagedContext(PagedKv(dense_config, 2, BLOCK_SIZE), [sequence])


def test_rows_that_belong_to_no_sequence_are_a_bug(dense_config: ModelConfig) -> None:
    rows = torch.zeros(3, 2, 8)
    context = PagedContext(PagedKv(dense_config, 2, BLOCK_SIZE), [PagedSequence([0], 0, 2)])

    with pytest.raises(Internal, match="3 rows"):
        context.attend(0, torch.zeros(3, 4, 8), rows, rows)
    with pytest.raises(Internal, match="add up to 2"):
        PackedCausal([2]).attend(0, torch.zeros(3, 4, 8), rows, rows)


@pytest.mark.parametrize("lengths", [[], [3, 0]])
def test_empty_packed_sequences_are_a_bug(lengths: list[int]) -> None:
    with pytest.raises(Internal, match="must be positive"):
        PackedCausal(lengths)


def test_storage_without_blocks_is_a_bug(dense_config: ModelConfig) -> None:
    with pytest.raises(Internal, match="0 of 4"):
        PagedKv(dense_config, 0, BLOCK_SIZE)
    with pytest.raises(Internal, match="Block 1 does not exist"):
        PagedKv(dense_config, 1, BLOCK_SIZE).export_block(1)
