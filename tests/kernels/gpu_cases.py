"""What every operator is asked on a GPU: ragged, empty and odd shapes, each with small tensors.

The same cases are run by Triton's interpreter, compiled for a GPU that need not be there, and run
on one that is.
"""

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from tests.kernels.builders import ALL_FORMATS, ffn, generator, normal, weight
from understudy_kernels import Format, PackedExperts
from understudy_kernels.packing import quantise_int4, quantise_int8, stack_experts

Case = tuple[str, tuple[object, ...]]
KV_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
EPS = 1e-5


def cases() -> Iterator[Case]:
    """Operator by operator, its arguments."""
    yield from linears()
    yield from embeddings()
    yield from norms()
    yield from feed_forwards()
    yield from experts()
    yield from attentions()
    yield from latents()
    yield from latent_attentions()
    yield from rotations()
    yield from samplings()
    yield from layers()


def linears() -> Iterator[Case]:
    for kind in ALL_FORMATS:
        made = weight(kind, 70, 256).packed
        yield "quantised_linear", (
            normal((3, 256), 1), made.data, int(kind), 70, normal((70,), 2), None, True,
        )  # fmt: skip
    made = weight(Format.BF16, 17, 40).packed  # neither side a whole tile
    for num_rows in (0, 1, 17):
        yield "quantised_linear", (
            normal((num_rows, 40), 1), made.data, int(Format.BF16), 17, None,
            normal((num_rows, 17), 2), True,
        )  # fmt: skip
    own = (quantise_int8(normal((33, 128), 3), 64), quantise_int4(normal((33, 128), 3), 64))
    for made in own:
        yield "quantised_linear", (
            normal((2, 128), 1), made.data, int(made.format), 33, None, None, True,
        )  # fmt: skip
    matrices = [weight(kind, 20, 256, kind).packed for kind in (Format.Q4_K, Format.BF16)]
    data, kinds = [each.data for each in matrices], [int(each.format) for each in matrices]
    for bias in (None, normal((40,), 4)):
        yield "normed_linears", (
            normal((2, 256), 1), normal((256,), 2), EPS, data, kinds, [20, 20], bias, True,
        )  # fmt: skip


def embeddings() -> Iterator[Case]:
    for kind in ALL_FORMATS:
        made = weight(kind, 21, 256).packed
        yield "quantised_embedding", (torch.tensor([20, 0, 7, 7]), made.data, int(kind), 21, 256)
    made = weight(Format.F16, 5, 40).packed
    for ids in (torch.zeros(0, dtype=torch.int64), torch.arange(5).repeat(4)):
        yield "quantised_embedding", (ids, made.data, int(Format.F16), 5, 40)


def norms() -> Iterator[Case]:
    for num_rows, size in ((3, 40), (0, 8), (1, 1), (2, 1000)):
        both = normal((num_rows, size), 1), normal((num_rows, size), 2)
        yield "add_rms_norm", (*both, normal((size,), 3), EPS)


def feed_forwards() -> Iterator[Case]:
    for kind, num_rows in ((Format.Q4_1, 5), (Format.Q4_1, 0), (Format.BF16, 18)):
        packed = ffn(kind, 32, 64)
        parts = (packed.gate.data, packed.up.data, packed.down.data, packed.formats, 64, True)
        hidden = normal((num_rows, 32), 1)
        yield "swiglu", (hidden, *parts)
        yield "normed_swiglu", (hidden, normal((32,), 2), EPS, *parts)


def experts() -> Iterator[Case]:
    """Gates that leave experts empty, that only name experts of others, that crowd one."""
    stacks = {
        kind: stack_experts([ffn(kind, 32, 64, 10 * index) for index in range(3)])
        for kind in (Format.Q4_1, Format.BF16)
    }
    gates, ids = normal((20, 6), 3).softmax(-1).topk(2, dim=-1)
    crowded = torch.tensor([[1, 2]] * 20), torch.full((20, 2), 0.5)
    elsewhere = torch.tensor([[4, 0]] * 5), torch.ones(5, 2)
    for kind, (chosen, by) in product(stacks, ((ids, gates), crowded, elsewhere)):
        yield "swiglu_experts", _experts(stacks[kind], chosen, by, 1)
    yield "swiglu_experts", _experts(stacks[Format.Q4_1], ids[:0], gates[:0], 0)
    yield "swiglu_experts", _experts(stacks[Format.Q4_1], ids[:, :0], gates[:, :0], 0)
    yield "swiglu_experts", _experts(stacks[Format.Q4_1], ids[:1].clone(), gates[:1].clone(), 0)


def _experts(stack: PackedExperts, ids: Tensor, gates: Tensor, first: int) -> tuple[object, ...]:
    hidden = normal((ids.shape[0], 32), 1)
    parts = (stack.gate, stack.up, stack.down, list(stack.formats), stack.ffn_size, first, True)
    return (hidden, ids.contiguous(), gates.contiguous(), *parts)


def cache(
    dtype: torch.dtype, num_kv: int, dim: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """One layer of an engine's storage of six blocks: keys, values and perhaps their scales."""
    storage = normal((6, 3, 2, 16, num_kv, dim), 4)
    if dtype != torch.int8:
        keys, values = storage.to(dtype)[:, 1].unbind(1)
        return keys, values, None, None
    scales = torch.rand(storage.shape[:-1], generator=generator(5)) * 0.02 + 0.001
    codes = torch.randint(-127, 128, storage.shape, generator=generator(6), dtype=torch.int8)
    return (*codes[:, 1].unbind(1), *scales[:, 1].unbind(1))


def rows(*lengths: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tables, sequences and lengths of rows of two sequences."""
    tables = torch.tensor([[3, 1, 0], [2, 4, 5]], dtype=torch.int32)
    sequences = torch.arange(len(lengths), dtype=torch.int32) * 2 // max(1, len(lengths))
    return tables, sequences, torch.tensor(lengths, dtype=torch.int32)


def attentions() -> Iterator[Case]:
    shapes = ((6, 2, 24), (9, 3, 64), (20, 1, 16))
    for dtype, (num_heads, num_kv, dim) in product(KV_DTYPES, shapes):
        query = normal((4, num_heads, dim), 7)
        yield "paged_attention", (
            query, *cache(dtype, num_kv, dim), *rows(35, 0, 1, 48), dim**-0.5,
        )  # fmt: skip
    yield "paged_attention", (normal((0, 6, 24), 7), *cache(torch.float32, 2, 24), *rows(), 0.2)


def latents() -> Iterator[Case]:
    """Values that are the first part of the keys, as latents are."""
    for dtype, width in ((torch.float32, 40), (torch.bfloat16, 40), (torch.float32, 300)):
        keys = normal((6, 16, 1, width), 4).to(dtype)
        query = normal((2, 18, width), 7)
        yield "paged_attention", (
            query, keys, keys[..., : width - 8], None, None, *rows(35, 2), 0.1,
        )  # fmt: skip


def latent_attentions() -> Iterator[Case]:
    """Twenty heads, which fill one run of heads and begin another."""
    up = weight(Format.BF16, 20 * (16 + 32), 24).packed
    query, packed = normal((2, 20, 16 + 6), 5), (up.data, int(up.format), 32)
    of_latents, of_keys = normal((6, 16, 1, 24), 6), normal((6, 16, 1, 6), 7)
    for dtype in (torch.float32, torch.bfloat16):
        both = of_keys.to(dtype), of_latents.to(dtype)
        yield "latent_attention", (query, *packed, *both, None, None, *rows(35, 2), 0.2)
    small = [(part * 40).to(torch.int8) for part in (of_keys, of_latents)]
    scales = torch.rand((2, 6, 16, 1), generator=generator(8)) * 0.02
    yield "latent_attention", (query, *packed, *small, *scales, *rows(35, 2), 0.2)
    plain = (of_keys, of_latents, None, None)
    yield "latent_attention", (query[:0].clone(), *packed, *plain, *rows(), 0.2)


def rotations() -> Iterator[Case]:
    slots = torch.tensor([0, 95, 17, 33, 5])
    for dtype, has_norms in product(KV_DTYPES, (True, False)):
        norms = (normal((24,), 3), normal((24,), 4)) if has_norms else (None, None)
        yield "rotate_and_cache", _rotation(dtype, 5, 24, slots, norms)
    yield (
        "rotate_and_cache",
        _rotation(torch.float32, 1, 2, slots[1:2].clone(), (None, normal((2,), 3))),
    )
    yield "rotate_and_cache", _rotation(torch.float32, 0, 8, slots[:0], (None, None))


def _rotation(
    dtype: torch.dtype, num_rows: int, dim: int, slots: Tensor, norms: tuple[Tensor | None, ...]
) -> tuple[object, ...]:
    projected, phase = normal((num_rows, 10 * dim), 1), normal((num_rows, dim // 2), 2)
    return projected, phase.cos(), phase.sin(), *cache(dtype, 2, dim), slots, 6, *norms, EPS


def samplings() -> Iterator[Case]:
    """Ways of keeping less than everything, over small and whole vocabularies."""
    kept = list(product((0.0, 1e-6, 0.3, 1.0, 2.5), (0, 1, 50, 10**6), (1e-9, 0.1, 0.9, 1.0)))
    places = list(product((700, 31, 1), (False, True)))
    for place, (vocab_size, is_masked) in enumerate(places):
        some = kept[place::12]  # half of them between the six: rows are slow to interpret
        columns = [list(column) for column in zip(*some, strict=True)]
        yield "sample_tokens", _sampling(vocab_size, 2.0, is_masked, *columns)
    yield (
        "sample_tokens",
        _sampling(50_257, 3.0, True, [0.8, 0.8], [0, 1000], [1.0, 0.95]),
    )
    # Equal logits keep the order of their ids.
    same = [torch.tensor([value] * 4) for value in (1.0, 4, 1.0)]
    drawn = torch.tensor([0.0, 0.3, 0.6, 0.99], dtype=torch.float64)
    yield "sample_tokens", (
        torch.zeros(4, 64), None, same[0].double(), same[1].long(), same[2].double(), drawn,
    )  # fmt: skip
    nothing = torch.zeros(0, dtype=torch.float64)
    yield "sample_tokens", (torch.zeros(0, 8), None, nothing, nothing.long(), nothing, nothing)


def _sampling(
    vocab_size: int, spread: float, is_masked: bool, temperatures: list[float], top_ks: list[int],
    top_ps: list[float],
) -> tuple[object, ...]:  # fmt: skip
    num_rows = len(temperatures)
    mask = None
    if is_masked:
        words = (num_rows, -(-vocab_size // 32))
        mask = torch.randint(-(2**31), 2**31, words, generator=generator(vocab_size)).int()
        mask[:, 0] |= 1
    return (
        normal((num_rows, vocab_size), vocab_size) * spread,
        mask,
        torch.tensor(temperatures, dtype=torch.float64),
        torch.tensor(top_ks),
        torch.tensor(top_ps, dtype=torch.float64),
        torch.rand(num_rows, generator=generator(9), dtype=torch.float64),
    )


def layers() -> Iterator[Case]:
    """Two layers of a decoder, with and without what some families add."""
    for has_extras, num_shards in ((True, 1), (False, 2)):
        storage = torch.zeros((6, 2, 2, 16, 2, 16))
        weights: list[Tensor] = []
        for layer in range(2):
            shapes = ((64, 32), (32, 32), (32, 32), (32, 64))
            shapes += ((48, 32), (48, 32), (32, 48)) * num_shards
            made = [
                weight(Format.BF16, *shape, 10 * layer + place).packed.data
                for place, shape in enumerate(shapes)
            ]
            weights += [normal((32,), layer), *made[:4], normal((32,), layer + 5), *made[4:]]
        biases = [normal((128,), 70 + layer) for layer in range(2)] if has_extras else []
        of_heads = [normal((16,), 80 + place) for place in range(4)] if has_extras else []
        phase = normal((3, 8), 2)
        yield "decoder_layers", (
            normal((3, 32), 1), weights, [int(Format.BF16)] * (4 + 3 * num_shards) * 2, biases,
            of_heads, 4, 48, num_shards, EPS, phase.cos(), phase.sin(), storage, None,
            torch.tensor([48, 49, 32]), *rows(1, 2, 1), 0.25, True,
        )  # fmt: skip
