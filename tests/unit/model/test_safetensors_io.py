import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.unit.model.conftest import Tiny
from understudy.errors import FailedPrecondition
from understudy.model.safetensors_io import (
    INDEX_NAME,
    WEIGHTS_NAME,
    quantise_rows,
    read_file,
    save_model,
    write_file,
)
from understudy.model.weights import load_model


def test_saved_model_loads_bit_for_bit(tiny: Tiny, tmp_path: Path) -> None:
    save_model(tmp_path, tiny.config, tiny.weights)

    loaded = load_model(tmp_path)

    assert loaded.config == tiny.config
    assert loaded.weights.keys() == tiny.weights.keys()
    assert all(torch.equal(loaded.weights[name], w) for name, w in tiny.weights.items())


def test_int8_model_is_within_half_a_step_and_keeps_vectors(dense: Tiny, tmp_path: Path) -> None:
    save_model(tmp_path, dense.config, dense.weights, is_int8=True, metadata={"made_by": "a test"})

    loaded = load_model(tmp_path)

    assert loaded.weights.keys() == dense.weights.keys()
    for name, weight in dense.weights.items():
        step = weight.abs().amax(dim=-1, keepdim=True) / 127 if weight.dim() == 2 else 0
        assert ((loaded.weights[name] - weight).abs() <= step * 0.5001).all(), name
    assert read_file(tmp_path / WEIGHTS_NAME)[1]["made_by"] == "a test"


def test_zero_rows_survive_quantisation() -> None:
    values, scale = quantise_rows(torch.zeros(2, 3))

    assert values.eq(0).all()
    assert scale.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    value = torch.tensor([1.5, -2.0]).to(dtype)
    save_file({"x": value}, tmp_path / "x.safetensors")

    assert torch.equal(read_file(tmp_path / "x.safetensors")[0]["x"], value.float())


def test_sharded_checkpoint_is_read_through_its_index(dense: Tiny, tmp_path: Path) -> None:
    save_model(tmp_path, dense.config, dense.weights)
    (tmp_path / WEIGHTS_NAME).unlink()
    names = sorted(dense.weights)
    halves = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, chosen in halves.items():
        write_file(tmp_path / file, {name: dense.weights[name] for name in chosen}, {})
    weight_map = {name: file for file, chosen in halves.items() for name in chosen}
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))

    assert load_model(tmp_path).weights.keys() == dense.weights.keys()


@pytest.mark.parametrize("index", ['{"weight_map": {"x": "../x.safetensors"}}', "{}", "[", "[]"])
def test_bad_index_is_refused(index: str, dense: Tiny, tmp_path: Path) -> None:
    save_model(tmp_path, dense.config, dense.weights)
    (tmp_path / INDEX_NAME).write_text(index)

    with pytest.raises(FailedPrecondition, match=r"model\.safetensors\.index\.json"):
        load_model(tmp_path)


def _broken(weights: dict[str, Tensor], fault: str) -> dict[str, Tensor]:
    name = "model.layers.1.self_attn.k_proj.weight"
    match fault:
        case "missing":
            del weights[name]
        case "misshapen":
            weights[name] = weights[name][:, :-1].contiguous()
        case "not a number":
            weights[name][3, 4] = torch.nan
        case "infinite":
            weights[name][3, 4] = -torch.inf
        case "integer":
            weights[name] = weights[name].to(torch.int32)
        case "unscaled":
            weights[name] = weights[name].to(torch.int8)
        case "badly scaled":
            weights[name] = weights[name].to(torch.int8)
            weights[f"{name}.scale"] = torch.ones(3)
        case "unknown":
            weights[f"{name}.more"] = torch.ones(3)
    return weights


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("missing", "lacks the tensor"),
        ("misshapen", r"shape \(16, 31\); the config needs \(16, 32\)"),
        ("not a number", "not finite"),
        ("infinite", "not finite"),
        ("integer", "as torch.int32"),
        ("unscaled", "without"),
        ("badly scaled", "expected one per row"),
        ("unknown", "unknown tensor"),
    ],
)
def test_faulty_tensor_is_refused_by_name(
    fault: str, said: str, dense: Tiny, tmp_path: Path
) -> None:
    save_model(tmp_path, dense.config, dense.weights)
    weights = _broken({name: w.clone() for name, w in dense.weights.items()}, fault)
    write_file(tmp_path / WEIGHTS_NAME, weights, {})

    with pytest.raises(FailedPrecondition, match=said) as raised:
        load_model(tmp_path)
    assert "model.layers.1.self_attn.k_proj.weight" in raised.value.message


def test_written_weights_can_be_read_by_another_service(dense: Tiny, tmp_path: Path) -> None:
    save_model(tmp_path, dense.config, dense.weights)

    assert (tmp_path / WEIGHTS_NAME).stat().st_mode & 0o044 == 0o044


def test_large_finite_weights_are_not_taken_for_infinite(dense: Tiny, tmp_path: Path) -> None:
    weights = dict(dense.weights)
    weights["model.norm.weight"] = torch.full((32,), 3e38)
    save_model(tmp_path, dense.config, weights)

    assert load_model(tmp_path).config == dense.config


@pytest.mark.parametrize("size", [0, 4, 40, 1000])
def test_truncated_safetensors_is_refused(size: int, dense: Tiny, tmp_path: Path) -> None:
    save_model(tmp_path, dense.config, dense.weights)
    file = tmp_path / WEIGHTS_NAME
    file.write_bytes(file.read_bytes()[:size])

    with pytest.raises(FailedPrecondition, match=r"model\.safetensors is no readable"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_unreadable_config_is_refused(content: str | None, dense: Tiny, tmp_path: Path) -> None:
    save_model(tmp_path, dense.config, dense.weights)
    (tmp_path / "config.json").unlink()
    if content is not None:
        (tmp_path / "config.json").write_text(content)

    with pytest.raises(FailedPrecondition, match=r"config\.json"):
        load_model(tmp_path)


def test_digest_follows_the_bytes_of_the_weights(dense: Tiny, tmp_path: Path) -> None:
    save_model(tmp_path, dense.config, dense.weights)
    before = load_model(tmp_path).digest
    changed = dict(dense.weights) | {"model.norm.weight": torch.full((32,), 2.0)}
    save_model(tmp_path, dense.config, changed)

    assert load_model(tmp_path).digest != before
