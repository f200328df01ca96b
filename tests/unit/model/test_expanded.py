"""Nothing that a file holds in few bits is expanded in memory, or a line says what is."""

import gc
import json
import logging
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch

from tests.unit.model.conftest import DENSE
from tests.unit.model.gguf_files import encode_any, named_tensors, write_gguf
from understudy.model.config import ModelConfig
from understudy.model.decoder import make_decoder
from understudy.model.families import write_hf
from understudy.model.ffn import FfnShards
from understudy.model.safetensors_io import save_model
from understudy.model.weights import MatrixType, load_model, random_weights
from understudy_kernels import Format, load
from understudy_kernels.formats import packed_bytes

WIDE = replace(DENSE, hidden_size=256, num_heads=8, num_kv_heads=2, head_dim=32, num_layers=2)
# Qwen2.5-0.5B, 1.5B and 3B have 19, 35 and 43 blocks of 256.
SIZES = [(kind, size, num) for kind in ("Q4_K", "Q6_K") for size, num in ((512, 2), (768, 1))]
SIZES += [(kind, s, num) for kind in ("Q8_0", "Q4_0", "Q4_1") for s, num in ((64, 2), (96, 1))]


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    load()


def _write(path: Path, config: ModelConfig, kind: str) -> Path:
    named = named_tensors(config, random_weights(config, seed=3, deviation=0.1))
    write_gguf(path, config, named, gguf.GGMLQuantizationType[kind], encode_any)
    return path


def _storages() -> dict[int, int]:
    """The bytes of every packed weight that is alive, by address."""
    gc.collect()
    alive = [each for each in gc.get_objects() if type(each) is torch.Tensor]
    return {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
        for each in alive
        if each.dtype == torch.uint8
    }


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.parametrize(("kind", "ffn_size", "num_shards"), SIZES)
def test_a_model_and_its_shards_take_what_their_file_takes(
    kind: str,
    ffn_size: int,
    num_shards: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = _write(tmp_path / "m.gguf", replace(WIDE, ffn_size=ffn_size), kind)
    before = _storages()
    loaded = load_model(path, compute="exact")
    config, of_file = loaded.config, sum(each.size_bytes for each in loaded.packed.values())

    decoder = make_decoder(config, loaded.stored, None, loaded.compute)
    workers = [FfnShards(config, loaded.stored, shards=[s]) for s in range(config.num_ffn_shards)]
    of_ffn = 3 * config.num_layers * packed_bytes(Format[kind], 256, ffn_size)
    del loaded
    alive = sum(size for at, size in _storages().items() if at not in before)

    assert config.num_ffn_shards == num_shards
    # A single shard is the matrices themselves; several are copies, here once for the decoder.
    assert alive == of_file + (of_ffn if num_shards > 1 else 0)
    assert _warnings(caplog) == []
    assert len(workers) == num_shards and decoder.config is config


@pytest.mark.parametrize(("kept_as", "size"), [("int8", 34), ("int4", 18)])
@pytest.mark.parametrize("ffn_size", [64, 96])
def test_int8_and_int4_stay_so_when_they_are_cut(
    kept_as: MatrixType, size: int, ffn_size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(WIDE, ffn_size=ffn_size)
    save_model(tmp_path, config, random_weights(config, 3))
    raw = write_hf(config)
    del raw["num_ffn_shards"]
    (tmp_path / "config.json").write_text(json.dumps(raw), "utf-8")
    loaded = load_model(tmp_path, kept_as, "exact")
    shards = FfnShards(loaded.config, loaded.stored)

    parts = [
        shards.dense(layer, shard)
        for layer in range(loaded.config.num_layers)
        for shard in range(loaded.config.num_ffn_shards)
    ]
    held = sum(each.size_bytes for part in parts for each in (part.gate, part.up, part.down))
    assert held == 2 * 3 * 256 * ffn_size // 32 * size
    assert _warnings(caplog) == []


def test_a_cut_that_a_file_demands_through_blocks_is_told_with_its_bytes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _write(tmp_path / "m.gguf", replace(WIDE, ffn_size=768), "Q4_K")
    loaded = load_model(path, compute="exact")
    config = replace(loaded.config, num_ffn_shards=2)

    FfnShards(config, loaded.stored)

    expanded = 2 * packed_bytes(Format.F32, 256, 768)
    compact = 2 * packed_bytes(Format.Q4_K, 256, 768)
    (line,) = _warnings(caplog)
    assert line.startswith(
        "2 matrices of Q4_K, the first being model.layers.0.mlp.down_proj.weight, are expanded and"
        f" take {expanded} bytes of memory instead of {compact}: num_ffn_shards"
    )


def test_quantised_types_without_a_kernel_are_told_with_their_bytes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_model(_write(tmp_path / "m.gguf", replace(WIDE, ffn_size=64), "Q5_0"), compute="exact")

    weights = random_weights(replace(WIDE, ffn_size=64), 3)
    numbers = sum(weight.numel() for weight in weights.values() if weight.dim() == 2)
    (line,) = _warnings(caplog)
    assert f"take {4 * numbers} bytes of memory instead of {numbers * 22 // 32}: m.gguf" in line
    assert "matrices of Q5_0, the first being token_embd.weight" in line


def test_int8_rows_that_fill_no_blocks_are_told_with_their_bytes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(DENSE, ffn_size=40, num_ffn_shards=1)
    save_model(tmp_path, config, random_weights(config, 3), is_int8=True)

    load_model(tmp_path, compute="exact")

    (line,) = _warnings(caplog)
    assert "3 matrices of int8, the first being model.layers.0.mlp.down_proj.weight" in line
