"""Random weights and whole models in the shape of SmolLM2-135M, for the kernels' benchmark."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from understudy_kernels import DecoderLayers, Format, PackedLinear, Rows, ops
from understudy_kernels.packing import (
    RAW_BYTES,
    pack_dense,
    pack_gguf,
    quantise_int4,
    quantise_int8,
)

SIZE: Final = 576
FFN: Final = 1536
HEADS: Final = 9
NUM_KV: Final = 3
DIM: Final = 64
LAYERS: Final = 30
VOCAB: Final = 49_152
OWN_GROUP: Final = 64
SCALE_BYTES: Final = {Format.Q4_1: 4, Format.Q4_K: 4}


def random_weight(kind: Format, num_out: int, num_in: int) -> PackedLinear:
    """Return a weight of small random values."""
    if not kind.is_quantised:
        dtype = {Format.F32: torch.float32, Format.F16: torch.float16, Format.BF16: torch.bfloat16}
        return pack_dense((torch.randn(num_out, num_in) * 0.02).to(dtype[kind]))
    row_bytes = num_in // kind.unit_inputs * RAW_BYTES[kind]
    raw = torch.randint(0, 256, (num_out, row_bytes), dtype=torch.uint8)
    blocks = raw.view(num_out, -1, RAW_BYTES[kind])
    scales = torch.full((2,), 0.001, dtype=torch.float16).view(torch.uint8)
    if kind is Format.Q6_K:
        blocks[..., 208:] = scales[:2]
    else:
        count = SCALE_BYTES.get(kind, 2)
        blocks[..., :count] = scales[:count]
    return pack_gguf(raw, kind)


def quantised_here(weight: Tensor) -> dict[str, PackedLinear]:
    """Return a weight in our own int8 and int4, with a scale for every 64 inputs."""
    return {
        "own int8": quantise_int8(weight, OWN_GROUP),
        "own int4": quantise_int4(weight, OWN_GROUP),
    }


def shapes() -> list[tuple[int, int]]:
    """Return (outputs, inputs) of the seven matrices of a layer."""
    kv = NUM_KV * DIM
    return [
        (SIZE, SIZE),
        (kv, SIZE),
        (kv, SIZE),
        (SIZE, SIZE),
        (FFN, SIZE),
        (FFN, SIZE),
        (SIZE, FFN),
    ]


def model() -> tuple[DecoderLayers, PackedLinear]:
    """Return all layers and the LM head."""
    weights: list[Tensor] = []
    for _ in range(LAYERS):
        matrices = [random_weight(Format.Q4_1, out, inner).data for out, inner in shapes()]
        weights += [torch.ones(SIZE), *matrices[:4], torch.ones(SIZE), *matrices[4:]]
    formats = [int(Format.Q4_1)] * 7 * LAYERS
    layers = DecoderLayers(weights, formats, [], [], HEADS, FFN, 1e-5)
    return layers, random_weight(Format.Q8_0, VOCAB, SIZE)


def step(
    layers: DecoderLayers, head: PackedLinear, storage: Tensor, num_rows: int
) -> Callable[[], object]:
    """Return one step: 512 rows are a prompt, fewer are sequences with 512 tokens cached."""
    is_prompt = num_rows == 512
    num_sequences = 1 if is_prompt else num_rows
    tables = torch.arange(33).repeat(num_sequences, 1).int()
    sequences = (
        torch.zeros(num_rows, dtype=torch.int32)
        if is_prompt
        else torch.arange(num_rows, dtype=torch.int32)
    )
    lengths = (
        torch.arange(1, 513, dtype=torch.int32)
        if is_prompt
        else torch.full((num_rows,), 513, dtype=torch.int32)
    )
    slots = torch.arange(512) if is_prompt else torch.full((num_rows,), 512)
    rows, hidden = Rows(tables, sequences, lengths), torch.randn(num_rows, SIZE)
    angles = (torch.ones(num_rows, DIM // 2), torch.zeros(num_rows, DIM // 2))

    def forward() -> Tensor:
        states = ops.decoder_layers(hidden, layers, angles, storage, slots, rows, DIM**-0.5)
        return ops.linear(states[-1:] if is_prompt else states, head)

    return forward
