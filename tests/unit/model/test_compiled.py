"""The compiled forward pass against plain torch, and against itself placed otherwise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.model.configs import ALL, LATENT_SHAPE
from tests.unit.model.conftest import DENSE, assert_near, trained_adapter
from understudy.errors import Internal
from understudy.model.adapter import Adapter, AdapterBatch
from understudy.model.compiled import CompiledDecoder, is_compilable
from understudy.model.config import ModelConfig
from understudy.model.decoder import Compute, Decoder, make_decoder, prepare_adapter
from understudy.model.ffn import FfnShards, Gates, PendingHidden, sum_partials
from understudy.model.kv_planes import DTYPES
from understudy.model.paged import PagedKv, PagedSequence
from understudy.model.safetensors_io import save_model
from understudy.model.sampling import SamplingParams, sample
from understudy.model.transformer import Transformer
from understudy.model.weights import LoadedModel, MatrixType, load_model, random_weights
from understudy_kernels import load

COMPILABLE = {name: config for name, config in ALL.items() if is_compilable(config)}
# Only quantised weights are computed with in another way when it has to be fast.
ARITHMETICS: list[tuple[MatrixType, Compute]] = [
    ("float32", "exact"),
    ("bfloat16", "exact"),
    ("int8", "exact"),
    ("int8", "fast"),
    ("int4", "fast"),
]
LENGTHS = (13, 1, 22)
TOKENS = [(torch.arange(length) * 7 + length) % 97 for length in LENGTHS]
TABLES = [[4, 0, 5], [1], [2, 7, 3]]


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    load()


def _loaded(
    config: ModelConfig, directory: Path, compute: Compute, kept_as: MatrixType = "float32"
) -> LoadedModel:
    if not (directory / "config.json").exists():
        save_model(directory, config, random_weights(config, seed=7, deviation=0.3))
    return load_model(directory, kept_as, compute)


def _decoder(loaded: LoadedModel) -> Decoder:
    return make_decoder(loaded.config, loaded.stored, None, loaded.compute)


def _kv(config: ModelConfig, dtype: torch.dtype = torch.float32) -> PagedKv:
    return PagedKv(config, num_blocks=8, block_size=8, dtype=dtype)


def _advance(
    decoder: Decoder,
    kv: PagedKv,
    parts: Sequence[tuple[int, int, int]],
    adapters: Sequence[Adapter | None] = (),
) -> list[Tensor]:
    """Advance (sequence, cached, new) together; return the hidden rows of each."""
    tokens = torch.cat([TOKENS[which][cached : cached + new] for which, cached, new in parts])
    rows = [adapter for adapter, part in zip(adapters, parts, strict=False) for _ in range(part[2])]
    with torch.inference_mode():
        hidden = decoder.advance(
            tokens,
            kv,
            [PagedSequence(TABLES[which], cached, new) for which, cached, new in parts],
            AdapterBatch.of_rows(rows) if adapters else None,
        )
    return list(hidden.split([new for _, _, new in parts]))


def _whole(decoder: Decoder, kv: PagedKv) -> list[Tensor]:
    return _advance(decoder, kv, [(which, 0, length) for which, length in enumerate(LENGTHS)])


def test_every_family_is_compiled() -> None:
    assert set(COMPILABLE) == set(ALL)
    odd = replace(ALL["deepseek_v3"], latent=replace(LATENT_SHAPE, kv_rank=5000))
    assert not is_compilable(odd)


@pytest.mark.parametrize("name", ALL)
def test_logits_of_every_family_equal_plain_torch(name: str, tmp_path: Path) -> None:
    ours = _decoder(_loaded(ALL[name], tmp_path, "exact"))
    theirs = _decoder(_loaded(ALL[name], tmp_path, "reference"))
    assert isinstance(ours, CompiledDecoder) == (name in COMPILABLE)

    rows = zip(_whole(ours, _kv(ALL[name])), _whole(theirs, _kv(ALL[name])), strict=True)

    with torch.inference_mode():
        for actual, expected in rows:
            assert_near(ours.logits(actual), theirs.logits(expected), tolerance=1e-4)


@pytest.mark.parametrize("kv_dtype", DTYPES)
@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen2_moe", "deepseek_v3"])
def test_every_type_of_kv_holds_what_plain_torch_holds(
    name: str, kv_dtype: str, tmp_path: Path
) -> None:
    config, dtype = ALL[name], DTYPES[kv_dtype]
    ours, theirs = _kv(config, dtype), _kv(config, dtype)

    actual = _whole(_decoder(_loaded(config, tmp_path, "exact")), ours)
    expected = _whole(_decoder(_loaded(config, tmp_path, "reference")), theirs)

    # One value in a thousand may round to the other side, and later layers then differ a little.
    tolerance = {"float32": 1e-4, "float16": 2e-2}.get(kv_dtype, 2e-1)
    for ours_rows, their_rows in zip(actual, expected, strict=True):
        assert_near(ours_rows, their_rows, tolerance)


@pytest.mark.parametrize("name", COMPILABLE)
def test_the_arithmetics_of_these_tests_are_different_ones(name: str, tmp_path: Path) -> None:
    config = COMPILABLE[name]
    loaded = [_loaded(config, tmp_path, compute, kept) for kept, compute in ARITHMETICS]
    rows = [_whole(_decoder(each), _kv(config))[0] for each in loaded]

    down = "model.layers.0.mlp.down_proj.weight"
    down = down if down in loaded[0].packed else "model.layers.0.mlp.experts.0.down_proj.weight"
    formats = ["F32", "BF16", "Q8_0", "Q8_0", "Q4_0"]
    assert [each.packed[down].format for each in loaded] == formats
    for index, one in enumerate(rows):
        assert not any(torch.equal(one, other) for other in rows[index + 1 :])


@pytest.mark.parametrize(
    ("kv_dtype", "kept_as", "compute"),
    [("float32", *arithmetic) for arithmetic in ARITHMETICS]
    + [("bfloat16", "bfloat16", "exact"), ("int8", "int8", "exact"), ("int8", "int8", "fast")],
)
@pytest.mark.parametrize("name", COMPILABLE)
def test_chunks_decodes_and_company_change_no_bit(
    name: str, kv_dtype: str, kept_as: MatrixType, compute: Compute, tmp_path: Path
) -> None:
    config, dtype = COMPILABLE[name], DTYPES[kv_dtype]
    decoder = _decoder(_loaded(config, tmp_path, compute, kept_as))
    whole = _whole(decoder, _kv(config, dtype))

    kv = _kv(config, dtype)
    steps = [[(0, 0, 5)], [(2, 0, 9), (0, 5, 1)], [(0, 6, 7), (1, 0, 1), (2, 9, 12)], [(2, 21, 1)]]
    pieces: list[list[Tensor]] = [[], [], []]
    for parts in steps:
        for (which, _, _), rows in zip(parts, _advance(decoder, kv, parts), strict=True):
            pieces[which].append(rows)

    for which, expected in enumerate(whole):
        assert torch.equal(torch.cat(pieces[which]), expected)


@dataclass(frozen=True)
class _Apart:
    """Every shard on a worker of its own."""

    workers: list[FfnShards]

    def submit(self, layer: int, hidden: Tensor, gates: Gates | None) -> PendingHidden:
        copied = hidden.clone()
        partials = [
            worker.partial(layer, shard, copied, gates) for shard, worker in enumerate(self.workers)
        ]

        class Pending:
            def wait(self) -> Tensor:
                return sum_partials(partials)

        return Pending()


@pytest.mark.parametrize(("kept_as", "compute"), ARITHMETICS)
@pytest.mark.parametrize("name", COMPILABLE)
def test_experts_elsewhere_change_no_bit(
    name: str, kept_as: MatrixType, compute: Compute, tmp_path: Path
) -> None:
    config = COMPILABLE[name]
    loaded = _loaded(config, tmp_path, compute, kept_as)
    shards = range(config.num_ffn_shards)
    apart = _Apart([FfnShards(config, loaded.stored, shards=[shard]) for shard in shards])
    remote = make_decoder(config, loaded.stored, apart, compute)

    rows = zip(_whole(remote, _kv(config)), _whole(_decoder(loaded), _kv(config)), strict=True)

    assert all(torch.equal(actual, expected) for actual, expected in rows)


@pytest.mark.parametrize(("kept_as", "compute"), ARITHMETICS)
def test_an_adapter_changes_its_own_rows_and_no_bit_of_others(
    kept_as: MatrixType, compute: Compute, tmp_path: Path
) -> None:
    loaded = _loaded(DENSE, tmp_path, compute, kept_as)
    decoder = _decoder(loaded)
    adapter = prepare_adapter(trained_adapter(DENSE), compute)
    alone = [
        _advance(decoder, _kv(DENSE), [(which, 0, LENGTHS[which])], [owner])[0]
        for which, owner in enumerate((adapter, None, adapter))
    ]

    parts = [(which, 0, length) for which, length in enumerate(LENGTHS)]
    together = _advance(decoder, _kv(DENSE), parts, [adapter, None, adapter])

    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    plain = _whole(decoder, _kv(DENSE))
    assert torch.equal(together[1], plain[1])
    assert not torch.equal(together[0], plain[0])


def test_an_adapter_gives_what_it_gives_in_plain_torch(tmp_path: Path) -> None:
    adapter = trained_adapter(DENSE)
    parts = [(which, 0, length) for which, length in enumerate(LENGTHS)]
    ours, theirs = (
        _advance(
            _decoder(_loaded(DENSE, tmp_path, compute)),
            _kv(DENSE),
            parts,
            [prepare_adapter(adapter, compute)] * 3,
        )
        for compute in ("exact", "reference")
    )
    for actual, expected in zip(ours, theirs, strict=True):
        assert_near(actual, expected, tolerance=1e-4)


def test_tokens_and_evidence_are_those_of_the_reference(tmp_path: Path) -> None:
    decoder = _decoder(_loaded(DENSE, tmp_path, "exact"))
    logits = torch.randn(4, 97, generator=torch.Generator().manual_seed(1)) * 3
    params = [
        SamplingParams(0.0, 0, 1.0),
        SamplingParams(0.8, 5, 0.9),
        SamplingParams(1.3, 0, 0.7),
        SamplingParams(1.0, 0, 1.0),
    ]
    seeds, positions = [1, 2, 3, 4], [7, 8, 9, 10]
    mask = torch.full((4, 4), -1, dtype=torch.int32)
    mask[1] = 0x0F0F0F0F

    ours = decoder.sample(logits, params, seeds, positions, mask)
    theirs = sample(logits, params, seeds, positions, mask)

    assert torch.equal(ours.tokens, theirs.tokens)
    for actual, expected in (
        (ours.logprobs, theirs.logprobs),
        (ours.margins, theirs.margins),
        (ours.mask_losses, theirs.mask_losses),
    ):
        assert_near(actual, expected, tolerance=1e-5)


def test_a_table_too_short_for_its_tokens_is_a_bug(tmp_path: Path) -> None:
    decoder = _decoder(_loaded(DENSE, tmp_path, "exact"))
    with torch.inference_mode(), pytest.raises(Internal, match="block table of 8 tokens"):
        decoder.advance(torch.arange(9), _kv(DENSE), [PagedSequence([1], 0, 9)])


def test_without_kernels_the_reference_is_made(tmp_path: Path) -> None:
    assert isinstance(_decoder(_loaded(DENSE, tmp_path, "reference")), Transformer)


@pytest.mark.parametrize("head_dim", [8, 1026])
def test_a_model_whose_rows_depend_on_their_batch_says_so_at_load(
    head_dim: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(DENSE, head_dim=head_dim, num_layers=1)  # 1,024 is the most
    decoder = _decoder(_loaded(config, tmp_path, "exact"))

    told = [record.getMessage() for record in caplog.records]
    assert decoder.is_batch_independent == isinstance(decoder, CompiledDecoder) == (head_dim == 8)
    assert len(told) == (head_dim > 8)
    assert all("No compiled operator fits the attention of this llama" in line for line in told)


def test_plain_torch_promises_no_independence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not _decoder(_loaded(DENSE, tmp_path, "reference")).is_batch_independent
    assert caplog.records == []  # it was asked for, or `load` has told why
