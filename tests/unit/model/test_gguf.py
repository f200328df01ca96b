import struct
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.model.configs import QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE, STRETCHED
from tests.unit.model.conftest import DENSE, MIXTURE, Tiny, assert_near
from tests.unit.model.gguf_files import named_tensors, write_gguf
from understudy.errors import FailedPrecondition
from understudy.gguf_header import parse_header
from understudy.model.attention import PackedCausal
from understudy.model.config import ModelConfig
from understudy.model.rope import Rotary, frequencies
from understudy.model.traits import RopeScaling
from understudy.model.transformer import Transformer
from understudy.model.weights import load_model, random_weights

# Correctness, not speed: a busy machine must not fail these.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    "config",
    [DENSE, MIXTURE, QWEN2, STRETCHED, QWEN3, QWEN2_MOE, QWEN3_MOE],
    ids=["llama", "mixtral", "qwen2", "yarn", "qwen3", "qwen2_moe", "qwen3_moe"],
)
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_gguf_holds_the_tensors_and_config_that_were_written(
    config: ModelConfig, is_tied: bool, tmp_path: Path
) -> None:
    config = replace(config, tie_embeddings=is_tied)
    weights = random_weights(config, seed=1)
    write_gguf(tmp_path / "m.gguf", config, named_tensors(config, weights))

    loaded = load_model(tmp_path / "m.gguf")

    assert loaded.config == config
    assert loaded.weights.keys() == weights.keys()
    assert all(torch.equal(loaded.weights[name], w) for name, w in weights.items())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16", "BF16"])
def test_quantised_tensors_equal_the_reference_dequantisation(kind: str, tmp_path: Path) -> None:
    config = DENSE
    weights = random_weights(config, seed=1)
    named = named_tensors(config, weights)
    quantisation = gguf.GGMLQuantizationType[kind]
    write_gguf(tmp_path / "m.gguf", config, named, quantisation)

    loaded = load_model(tmp_path / "m.gguf")

    source = weights["model.layers.1.mlp.up_proj.weight"].numpy()
    reference = gguf.quants.dequantize(gguf.quants.quantize(source, quantisation), quantisation)
    actual = loaded.weights["model.layers.1.mlp.up_proj.weight"].numpy()
    assert np.array_equal(actual, reference)


def test_table_of_divisors_stretches_the_frequencies_of_llama_3(tmp_path: Path) -> None:
    # GGUF files of llama 3.1 have no metadata on scaling, only this table.
    smooth = RopeScaling(kind="llama3", factor=8.0, original_positions=24)
    config = replace(DENSE, rope_scaling=smooth)
    plain, stretched = frequencies(8, 10_000.0), Rotary(config).angles(torch.tensor([1]))
    divisors = plain / torch.atan2(stretched[1], stretched[0])[0, 0]
    weights = random_weights(DENSE, seed=1)
    write_gguf(
        tmp_path / "m.gguf", DENSE, {**named_tensors(DENSE, weights), "rope_freqs.weight": divisors}
    )

    loaded = load_model(tmp_path / "m.gguf")

    assert loaded.config.rope_scaling is not None
    assert loaded.config.rope_scaling.kind == "factors"
    hidden = [
        Transformer(c, weights).forward(torch.arange(60), torch.arange(60), PackedCausal([60]))
        for c in (config, loaded.config)
    ]
    assert_near(hidden[1], hidden[0], tolerance=1e-4)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path, DENSE, named_tensors(DENSE, random_weights(DENSE, seed=1)))
    return path.read_bytes()


@UNHURRIED
@given(share=st.floats(0.0, 1.0, exclude_max=True))
def test_file_truncated_anywhere_is_refused(content: bytes, share: float) -> None:
    # The last tensor may be followed by padding, which nobody misses.
    cut = content[: int(share * (len(content) - 64))]
    with pytest.raises(FailedPrecondition, match=r"m\.gguf is (truncated|no GGUF)"):
        parse_header("m.gguf", memoryview(cut))


@UNHURRIED
@given(st.data())
def test_corrupt_header_ends_in_a_header_or_a_named_error(
    content: bytes, data: st.DataObject
) -> None:
    broken = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, 2000))] = data.draw(st.integers(0, 255))
    try:
        header = parse_header("m.gguf", memoryview(bytes(broken)))
    except FailedPrecondition as error:
        assert "m.gguf" in error.message
    else:
        assert all(t.start + t.size_bytes <= len(broken) for t in header.tensors)


def test_truncated_tensor_data_is_refused_naming_the_tensor(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(content[: len(content) // 2])

    with pytest.raises(FailedPrecondition, match=r"m\.gguf is truncated: 'blk\.\d\."):
        load_model(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("start", "said"),
    [(b"", "cannot be read"), (b"GGML", "no GGUF file"), (b"GGUF\x09\0\0\0", "version 9")],
)
def test_file_that_is_no_gguf_is_refused(start: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(start)

    with pytest.raises(FailedPrecondition, match=said):
        load_model(tmp_path / "m.gguf")


def test_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"none\.gguf cannot be read"):
        load_model(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("blk.0.attn_q.weight", None, "lacks the tensor 'model.layers.0.self_attn.q_proj.weight'"),
        ("blk.0.attn_q.weight", torch.ones(30, 32), "not divisible into 4 heads"),
        ("blk.0.ffn_up.weight", torch.ones(47, 32), r"shape \(47, 32\); the config needs"),
        ("blk.0.ffn_up.weight", torch.full((64, 32), torch.nan), "not finite"),
        (
            "blk.0.attn_q.bias",
            torch.ones(32),
            "unknown tensor 'model.layers.0.self_attn.q_proj.bias'",
        ),
        ("blk.9.ffn_norm.weight", torch.ones(32), "unknown tensor 'model.layers.9"),
    ],
)
def test_faulty_tensor_in_gguf_is_refused_by_name(
    name: str, value: Tensor | None, said: str, dense: Tiny, tmp_path: Path
) -> None:
    named = named_tensors(dense.config, dense.weights)
    if value is None:
        del named[name]
    else:
        named[name] = value
    write_gguf(tmp_path / "m.gguf", dense.config, named)

    with pytest.raises(FailedPrecondition, match=said):
        load_model(tmp_path / "m.gguf")


def test_unknown_architecture_is_refused_naming_it(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "rwkv6")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with pytest.raises(FailedPrecondition, match="'rwkv6' is not supported"):
        load_model(tmp_path / "m.gguf")


def _header(entry: bytes, num_tensors: int = 1, keys: bytes = b"", num_keys: int = 0) -> memoryview:
    return memoryview(b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_keys) + keys + entry)


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (_header(b"", num_tensors=1 << 40), "claims 1099511627776 tensors"),
        (_header(b"", 0, _text(b"\xff"), 1), "no UTF-8"),
        (_header(b"", 0, _text(b"k") + struct.pack("<I", 99), 1), "unknown type 99"),
        (_header(_text(b"t") + struct.pack("<I", 5)), "'t' with 5 dimensions"),
        (_header(_text(b"t") + struct.pack("<IQIQ", 1, 8, 999, 0)), "'t' in the unknown type 999"),
        (_header(_text(b"t") + struct.pack("<IQIQ", 1, 33, 8, 0)), "rows of 33, no multiple of 32"),
        (
            _header(b"", 0, _text(b"general.alignment") + struct.pack("<II", 4, 0), 1),
            "the alignment 0",
        ),
        (
            _header(b"", 0, _text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 60), 1),
            "truncated",
        ),
    ],
)
def test_hostile_header_is_refused_without_large_work(content: memoryview, said: str) -> None:
    with pytest.raises(FailedPrecondition, match=said):
        parse_header("m.gguf", content)


def test_tensor_in_a_type_without_dequantisation_is_refused_by_name(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for key, value in (("block_count", 1), ("context_length", 8), ("embedding_length", 32)):
        writer.add_uint32(f"llama.{key}", value)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    kind = gguf.GGMLQuantizationType.Q8_1
    row = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    writer.add_tensor("token_embd.weight", row, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with pytest.raises(FailedPrecondition, match=r"'token_embd\.weight' in the unsupported type"):
        load_model(tmp_path / "m.gguf")
