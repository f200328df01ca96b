"""Weights that stay packed: values, cuts, sizes, and what is refused."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from tests.kernels.builders import ALL_FORMATS, weight
from tests.unit.model.conftest import DENSE, assert_near
from tests.unit.model.gguf_files import encode_any, named_tensors, write_gguf
from understudy.errors import FailedPrecondition
from understudy.model.decoder import Compute, make_decoder
from understudy.model.packed import Packed, pack
from understudy.model.paged import PagedKv, PagedSequence
from understudy.model.safetensors_io import Int8Rows, quantise_rows, save_model
from understudy.model.weights import LoadedModel, MatrixType, load_model, random_weights
from understudy_kernels import Format, load
from understudy_kernels.formats import packed_bytes

GGUF_KINDS = ("Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "F16", "BF16", "F32")
WIDE = replace(
    DENSE, hidden_size=256, num_heads=8, num_kv_heads=2, head_dim=32, ffn_size=512, num_layers=2
)
NAME = "model.layers.1.mlp.up_proj.weight"
TOKENS = torch.arange(9) * 7 % 97


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    load()


def _write(path: Path, kind: str) -> None:
    named = named_tensors(WIDE, random_weights(WIDE, seed=3, deviation=0.1))
    write_gguf(path, WIDE, named, gguf.GGMLQuantizationType[kind], encode_any)


def _logits(loaded: LoadedModel, chunk: int = len(TOKENS)) -> torch.Tensor:
    decoder = make_decoder(loaded.config, loaded.stored, None, loaded.compute)
    kv = PagedKv(loaded.config, num_blocks=2, block_size=8)
    with torch.inference_mode():
        hidden = [
            decoder.advance(tokens, kv, [PagedSequence([1, 0], index * chunk, len(tokens))])
            for index, tokens in enumerate(TOKENS.split(chunk))
        ]
        return torch.cat([decoder.logits(rows) for rows in hidden])


@pytest.mark.parametrize("kind", GGUF_KINDS)
def test_every_kind_of_gguf_stays_packed_and_gives_the_logits_of_plain_torch(
    kind: str, tmp_path: Path
) -> None:
    _write(tmp_path / "m.gguf", kind)

    packed = load_model(tmp_path / "m.gguf", compute="exact")
    plain = load_model(tmp_path / "m.gguf")

    matrix = packed.packed[NAME]
    assert isinstance(matrix, Packed)
    assert matrix.weight.format is Format[kind]
    assert matrix.weight.data.numel() == packed_bytes(Format[kind], 512, 256)
    assert torch.equal(matrix.dense(), plain.weights[NAME])
    expected = _logits(plain)
    assert (_logits(packed) - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("compute", ["exact", "fast"])
@pytest.mark.parametrize("kind", GGUF_KINDS)
def test_one_by_one_and_together_are_the_same_bits_in_every_kind(
    kind: str, compute: Compute, tmp_path: Path
) -> None:
    _write(tmp_path / "m.gguf", kind)
    loaded = load_model(tmp_path / "m.gguf", compute=compute)

    assert torch.equal(_logits(loaded, chunk=1), _logits(loaded))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q6_K"])
def test_fast_is_near_and_files_and_arithmetic_are_told_apart(kind: str, tmp_path: Path) -> None:
    _write(tmp_path / "m.gguf", kind)

    loaded = {mode: load_model(tmp_path / "m.gguf", compute=mode) for mode in ("exact", "fast")}

    exact, fast = _logits(loaded["exact"]), _logits(loaded["fast"])
    assert not torch.equal(exact, fast)
    assert (exact - fast).abs().max() < 0.05 * exact.abs().max()
    assert loaded["exact"].digest == loaded["fast"].digest
    assert loaded["exact"].ffn_digest != loaded["fast"].ffn_digest


@pytest.mark.parametrize("kind", ALL_FORMATS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("start", "stop"), [(0, 48), (16, 48), (16, 37), (5, 29)])
def test_rows_are_those_of_the_whole(kind: Format, start: int, stop: int) -> None:
    whole = weight(kind, 48, 256)
    cut = Packed(whole.packed, is_exact=True).rows(start, stop)
    assert cut.shape == (stop - start, 256)
    assert torch.equal(cut.dense(), whole.values[start:stop])


@pytest.mark.parametrize("kind", ALL_FORMATS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("start", "stop"), [(0, 512), (256, 512), (32, 96), (40, 100)])
def test_columns_are_those_of_the_whole(kind: Format, start: int, stop: int) -> None:
    whole = weight(kind, 32, 512)
    cut = Packed(whole.packed, is_exact=True).columns(start, stop)
    assert cut.shape == (32, stop - start)
    assert torch.equal(cut.dense(), whole.values[:, start:stop])


def test_embedding_rows_and_products_are_the_matrix() -> None:
    whole = weight(Format.Q4_1, 48, 64)
    matrix = Packed(whole.packed, is_exact=True)
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(matrix.embed(torch.tensor([7, 0, 47])), whole.values[[7, 0, 47]])
    assert_near(matrix.multiply(hidden), hidden @ whole.values.T, tolerance=1e-5)


def test_int8_rows_keep_their_values_to_the_rounding_of_their_scale() -> None:
    values = torch.randn(24, 64, generator=torch.Generator().manual_seed(2)) * 0.1
    rows = Int8Rows(*quantise_rows(values))
    matrix = pack("w", rows, is_exact=True)
    assert matrix.weight.format is Format.Q8_0
    assert ((matrix.dense() - rows.dense()).abs() <= rows.dense().abs() * 2**-11).all()
    narrow = Int8Rows(*quantise_rows(values[:, :40]))
    assert torch.equal(pack("w", narrow, is_exact=True).dense(), narrow.dense())


@pytest.mark.parametrize(("kept_as", "steps", "size"), [("int8", 127, 34), ("int4", 7, 18)])
def test_safetensors_are_kept_in_groups_of_few_bits(
    kept_as: MatrixType, steps: int, size: int, tmp_path: Path
) -> None:
    weights = random_weights(WIDE, seed=3, deviation=0.1)
    save_model(tmp_path, WIDE, weights)

    packed = load_model(tmp_path, kept_as, "exact")

    matrix = packed.packed[NAME]
    assert isinstance(matrix, Packed)
    assert matrix.weight.data.numel() == 512 * 256 // 32 * size
    groups = weights[NAME].unflatten(1, (-1, 32))
    half_step = groups.abs().amax(dim=-1, keepdim=True) / steps * 0.51
    assert ((matrix.dense().unflatten(1, (-1, 32)) - groups).abs() <= half_step).all()
    plain = load_model(tmp_path, kept_as)
    assert torch.equal(plain.weights[NAME], matrix.dense())
    assert_near(_logits(packed), _logits(plain), tolerance=1e-4)
    assert plain.ffn_digest != load_model(tmp_path).ffn_digest


def test_matrices_that_fill_no_blocks_stay_as_they_are(tmp_path: Path) -> None:
    config = replace(DENSE, ffn_size=48)
    weights = random_weights(config, seed=3)
    save_model(tmp_path, config, weights)
    loaded = load_model(tmp_path, "int4", "exact")
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(loaded.packed[name].dense(), weights[name])
    assert not torch.equal(loaded.packed[NAME].dense(), weights[NAME])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("kept_as", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("name", [NAME, "model.layers.0.input_layernorm.weight"])
def test_a_value_that_is_not_finite_is_reported_with_its_tensor(
    name: str, kept_as: MatrixType, value: float, tmp_path: Path
) -> None:
    weights = random_weights(DENSE, seed=7)
    weights[name].view(-1)[1] = value
    save_model(tmp_path, DENSE, weights)

    with pytest.raises(FailedPrecondition, match=f"'{name}'.* not finite") as caught:
        load_model(tmp_path, kept_as, "exact")
    assert caught.value.metadata["tensor"] == name


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("compute", ["exact", "reference"])
@pytest.mark.parametrize(
    ("kind", "where"),
    [("Q8_0", 0), ("Q4_0", 0), ("Q4_1", 0), ("Q4_1", 2), ("Q4_K", 0), ("Q4_K", 2), ("Q6_K", 208)],
)
def test_a_scale_or_minimum_in_a_gguf_that_is_not_finite_is_reported_with_its_tensor(
    kind: str, where: int, compute: Compute, value: float, tmp_path: Path
) -> None:
    def broken(array: np.ndarray, quantisation: gguf.GGMLQuantizationType) -> np.ndarray:
        raw = encode_any(array, quantisation)
        if array.shape == (512, 256) and not is_broken:
            is_broken.append(True)
            raw[3, where : where + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
        return raw

    is_broken: list[bool] = []
    named = named_tensors(WIDE, random_weights(WIDE, seed=3, deviation=0.1))
    write_gguf(tmp_path / "m.gguf", WIDE, named, gguf.GGMLQuantizationType[kind], broken)
    assert is_broken

    with pytest.raises(FailedPrecondition, match="not finite") as caught:
        load_model(tmp_path / "m.gguf", compute=compute)
    assert caught.value.metadata["tensor"] == "model.layers.0.mlp.gate_proj.weight"
