"""Every layer in one call: the single operators' result, alone or in company, chunked or whole."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.kernels.builders import normal, weight
from understudy.errors import Internal
from understudy_kernels import DecoderLayers, Format, Rows, ops
from understudy_kernels.reference.layers import decoder_layers as reference

SIZE, FFN, HEADS, NUM_KV, DIM, LAYERS, BLOCK_SIZE = 64, 96, 4, 2, 16, 3, 8
WIDTH = (HEADS + 2 * NUM_KV) * DIM
SCALE = DIM**-0.5


def layers(kind: Format, *, has_extras: bool, num_shards: int = 1) -> DecoderLayers:
    weights: list[Tensor] = []
    for layer in range(LAYERS):
        shapes = (
            (HEADS * DIM, SIZE),
            (NUM_KV * DIM, SIZE),
            (NUM_KV * DIM, SIZE),
            (SIZE, HEADS * DIM),
        )
        projections = [
            weight(kind, *shape, 10 * layer + i).packed.data for i, shape in enumerate(shapes)
        ]
        shapes = ((FFN, SIZE), (FFN, SIZE), (SIZE, FFN)) * num_shards
        parts = [
            weight(kind, *shape, 10 * layer + 5 + i).packed.data for i, shape in enumerate(shapes)
        ]
        weights += [normal((SIZE,), layer), *projections, normal((SIZE,), layer + 50), *parts]
    biases = [normal((WIDTH,), 70 + layer) for layer in range(LAYERS)] if has_extras else []
    norms = [normal((DIM,), 80 + index) for index in range(2 * LAYERS)] if has_extras else []
    formats = [int(kind)] * (4 + 3 * num_shards) * LAYERS
    return DecoderLayers(weights, formats, biases, norms, HEADS, FFN, 1e-5, num_shards)


def storage() -> Tensor:
    return torch.zeros((12, LAYERS, 2, BLOCK_SIZE, NUM_KV, DIM))


def angles(positions: Tensor) -> tuple[Tensor, Tensor]:
    phase = positions[:, None] / 100.0 ** (torch.arange(DIM // 2) / (DIM // 2))
    return phase.cos(), phase.sin()


def run(
    model: DecoderLayers, kv: Tensor, hidden: Tensor, table: list[int], start: int, *, exact: bool
) -> Tensor:
    positions = torch.arange(start, start + hidden.shape[0])
    slots = torch.tensor(table)[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    rows = Rows(
        torch.tensor([table], dtype=torch.int32),
        torch.zeros(hidden.shape[0], dtype=torch.int32),
        (positions + 1).int(),
    )
    return ops.decoder_layers(hidden, model, angles(positions), kv, slots, rows, SCALE, exact=exact)


@pytest.mark.parametrize("kind", [Format.F32, Format.Q4_1])
@pytest.mark.parametrize("has_extras", [True, False])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_layers_equal_the_single_operators_of_the_reference(
    kind: Format, *, has_extras: bool, num_shards: int
) -> None:
    model = layers(kind, has_extras=has_extras, num_shards=num_shards)
    hidden = normal((13, SIZE), 3)
    found_kv, wanted_kv = storage(), storage()
    found = run(model, found_kv, hidden, [3, 1], 0, exact=True)
    positions = torch.arange(13)
    slots = torch.tensor([3, 1])[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    wanted = reference(
        hidden, model.weights, model.formats, model.biases, model.head_norms, HEADS, model.ffn_size,
        model.num_shards, 1e-5,
        *angles(positions), wanted_kv, None, slots, torch.tensor([[3, 1]], dtype=torch.int32),
        torch.zeros(13, dtype=torch.int32), (positions + 1).int(), SCALE, True,
    )  # fmt: skip
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found_kv, wanted_kv, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("exact", [True, False])
def test_chunks_and_single_tokens_give_the_bits_of_the_whole_prompt(*, exact: bool) -> None:
    model = layers(Format.Q4_1, has_extras=False, num_shards=2)
    hidden = normal((40, SIZE), 3)
    whole_kv, parts_kv = storage(), storage()
    whole = run(model, whole_kv, hidden, [3, 1, 7, 0, 11], 0, exact=exact)
    cuts = [0, 1, 2, 9, 30, 39, 40]
    chunks = [
        run(model, parts_kv, hidden[start:stop].contiguous(), [3, 1, 7, 0, 11], start, exact=exact)
        for start, stop in pairwise(cuts)
    ]
    assert torch.equal(torch.cat(chunks), whole)
    assert torch.equal(parts_kv, whole_kv)


def test_nothing_is_done_for_no_rows_and_wrong_lists_are_refused() -> None:
    model = layers(Format.F32, has_extras=False)
    assert run(model, storage(), torch.zeros(0, SIZE), [0], 0, exact=True).shape == (0, SIZE)
    short = DecoderLayers(model.weights[:-1], model.formats, [], [], HEADS, FFN, 1e-5)
    with pytest.raises(Internal, match=r"formats must name|9 a layer"):
        run(short, storage(), torch.zeros(1, SIZE), [0], 0, exact=True)
