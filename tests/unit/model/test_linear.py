"""The seam of matrices: formats other than a plain tensor, and 16-bit weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.unit.model.configs import ALL
from tests.unit.model.conftest import DENSE, Tiny, assert_near
from understudy.errors import FailedPrecondition
from understudy.model.attention import PackedCausal
from understudy.model.linear import Matrix, Plain, swiglu
from understudy.model.safetensors_io import quantise_rows, save_model
from understudy.model.transformer import Transformer
from understudy.model.weights import (
    MATRIX_DTYPES,
    LoadedModel,
    MatrixType,
    load_model,
    random_weights,
)

TOKENS = torch.arange(11) * 7 % 97


@dataclass(frozen=True, slots=True)
class _Int8:
    """A matrix of int8 with a scale per row, multiplied without being expanded."""

    values: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def format(self) -> str:
        return "int8"

    @property
    def size_bytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes

    def multiply(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.values.float()) * self.scales

    def swiglu(self, up: Matrix, down: Matrix, hidden: Tensor) -> Tensor:
        return swiglu(self, up, down, hidden)

    def rows(self, start: int, stop: int) -> "_Int8":
        return _Int8(self.values[start:stop], self.scales[start:stop])

    def columns(self, start: int, stop: int) -> "_Int8":
        return _Int8(self.values[:, start:stop].contiguous(), self.scales)

    def embed(self, ids: Tensor) -> Tensor:
        return self.values[ids].float() * self.scales[ids].unsqueeze(-1)

    def dense(self) -> Tensor:
        return self.values.float() * self.scales.unsqueeze(-1)


def _logits(model: Transformer) -> Tensor:
    with torch.inference_mode():
        positions = torch.arange(len(TOKENS))
        return model.logits(model.forward(TOKENS, positions, PackedCausal([len(TOKENS)])))


@pytest.mark.parametrize("name", ALL)
def test_packed_matrices_serve_in_place_of_every_tensor(name: str) -> None:
    config = ALL[name]
    weights = random_weights(config, seed=7, deviation=0.3)
    packed = {n: _Int8(*quantise_rows(w)) for n, w in weights.items() if w.dim() == 2}
    vectors = {n: w for n, w in weights.items() if w.dim() == 1}
    expanded: Mapping[str, Tensor] = {**vectors, **{n: m.dense() for n, m in packed.items()}}

    stored = LoadedModel(config, vectors, "", packed).stored
    actual = _logits(Transformer(config, stored))

    assert_near(actual, _logits(Transformer(config, expanded)), tolerance=1e-4)


@pytest.mark.parametrize("kept_as", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_16_bit_weights_compute_like_the_same_values_in_32_bits(
    name: str, kept_as: MatrixType, tmp_path: Path
) -> None:
    config = ALL[name]
    save_model(tmp_path, config, random_weights(config, seed=7, deviation=0.3))

    half = load_model(tmp_path, kept_as)

    whole = {n: w.float() for n, w in half.weights.items()}
    assert half.weights["model.layers.0.self_attn.o_proj.weight"].dtype == MATRIX_DTYPES[kept_as]
    assert half.weights["model.norm.weight"].dtype == torch.float32
    assert half.digest == load_model(tmp_path).digest
    cast = _logits(Transformer(config, half.stored))
    assert torch.equal(cast, _logits(Transformer(config, whole)))


def test_gates_keep_their_precision(tmp_path: Path) -> None:
    config = ALL["deepseek_v3"]
    weights = random_weights(config, seed=7, deviation=0.3)
    save_model(tmp_path, config, weights)

    half = load_model(tmp_path, "bfloat16")

    name = "model.layers.1.mlp.gate.weight"
    assert torch.equal(half.weights[name], weights[name])


def test_weights_too_large_for_16_bits_are_refused_by_name(tmp_path: Path) -> None:
    weights = random_weights(DENSE, seed=7)
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e6
    save_model(tmp_path, DENSE, weights)

    with pytest.raises(FailedPrecondition, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' that"):
        load_model(tmp_path, "float16")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "model.layers.2.mlp.experts.5.down_proj.weight",
        "model.layers.0.self_attn.kv_b_proj.weight",
    ],
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_is_reported_with_its_tensor(
    name: str, value: float, tmp_path: Path
) -> None:
    config = ALL["deepseek_v3"]
    weights = random_weights(config, seed=7)
    weights[name].view(-1)[1] = value
    save_model(tmp_path, config, weights)

    with pytest.raises(FailedPrecondition, match=f"values in '{name}' that are not finite"):
        load_model(tmp_path)


def test_parts_of_a_plain_matrix_are_views_or_contiguous() -> None:
    weight = torch.arange(12.0).view(3, 4)
    plain = Plain(weight)

    assert plain.rows(0, 3) is plain
    assert plain.columns(0, 4) is plain
    assert torch.equal(plain.rows(1, 2).dense(), weight[1:2])
    assert plain.columns(1, 3).weight.is_contiguous()
    assert plain.columns(1, 3).shape == (3, 2)


def test_tiny_models_of_16_bits_choose_much_the_same_tokens(tmp_path: Path) -> None:
    weights = random_weights(DENSE, seed=7, deviation=0.3)
    save_model(tmp_path, DENSE, weights)

    half = load_model(tmp_path, "bfloat16")

    agreeing = _logits(Transformer(DENSE, half.stored)).argmax(-1)
    assert (agreeing == Tiny(DENSE, weights).logits(TOKENS).argmax(-1)).float().mean() > 0.8
