import struct
from collections.abc import Mapping
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
from understudy.errors import FailedPrecondition
from understudy.model.attention import PackedCausal
from understudy.model.config import ModelConfig
from understudy.model.gguf_header import parse_header
from understudy.model.rope import Rotary, frequencies
from understudy.model.traits import RopeScaling
from understudy.model.transformer import Transformer
from understudy.model.weights import load_model, random_weights

# Correctness, not speed: a busy machine must not fail these.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
ARCHITECTURES = {
    "llama": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
}


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    # What llama.cpp's converter does to q and k.
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _named(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
        "rope_freqs.weight": torch.ones(4),
    }
    if not config.tie_embeddings:
        named["output.weight"] = weights["lm_head.weight"]
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        for canonical, short in LAYER_NAMES.items():
            weight = weights.get(f"{prefix}.{canonical}.weight")
            bias = weights.get(f"{prefix}.{canonical}.bias")
            if bias is not None:
                named[f"blk.{layer}.{short}.bias"] = bias
            heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(short)
            if ARCHITECTURES[config.family] != "llama":
                heads = None
            if weight is not None and short == "ffn_gate_inp_shexp":
                named[f"blk.{layer}.{short}.weight"] = weight[0]
            elif weight is not None:
                value = weight if heads is None else _interleaved(weight, heads)
                named[f"blk.{layer}.{short}.weight"] = value
        for which, short in (("gate_proj", "gate"), ("down_proj", "down"), ("up_proj", "up")):
            experts = [
                weights[f"{prefix}.mlp.experts.{e}.{which}.weight"]
                for e in range(config.num_experts)
            ]
            if experts:
                named[f"blk.{layer}.ffn_{short}_exps.weight"] = torch.stack(experts)
    return named


def _write(
    path: Path,
    config: ModelConfig,
    named: Mapping[str, Tensor],
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> None:
    writer = gguf.GGUFWriter(path, ARCHITECTURES[config.family])
    writer.add_block_count(config.num_layers)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.ffn_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_token_list([f"<{i}>" for i in range(config.vocab_size)])
    writer.add_token_scores([0.0] * config.vocab_size)
    if config.is_moe:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_token)
        if config.expert_size is not None:
            writer.add_expert_feed_forward_length(config.expert_size)
        if config.shared_size:
            writer.add_expert_shared_feed_forward_length(config.shared_size)
    if config.rope_scaling is not None and config.rope_scaling.kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(config.rope_scaling.factor)
        writer.add_rope_scaling_orig_ctx_len(config.rope_scaling.original_positions)
    for name, value in named.items():
        is_matrix = value.dim() > 1
        array = value.contiguous().numpy()
        data = gguf.quants.quantize(array, kind) if is_matrix else array
        writer.add_tensor(name, data, raw_dtype=kind if is_matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
    _write(tmp_path / "m.gguf", config, _named(config, weights))

    loaded = load_model(tmp_path / "m.gguf")

    assert loaded.config == config
    assert loaded.weights.keys() == weights.keys()
    assert all(torch.equal(loaded.weights[name], w) for name, w in weights.items())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16", "BF16"])
def test_quantised_tensors_equal_the_reference_dequantisation(kind: str, tmp_path: Path) -> None:
    config = replace(DENSE, ffn_size=64)
    weights = random_weights(config, seed=1)
    named = _named(config, weights)
    quantisation = gguf.GGMLQuantizationType[kind]
    _write(tmp_path / "m.gguf", config, named, quantisation)

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
    _write(tmp_path / "m.gguf", DENSE, {**_named(DENSE, weights), "rope_freqs.weight": divisors})

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
    _write(path, DENSE, _named(DENSE, random_weights(DENSE, seed=1)))
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
        ("blk.0.ffn_up.weight", torch.full((48, 32), torch.nan), "not finite"),
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
    named = _named(dense.config, dense.weights)
    if value is None:
        del named[name]
    else:
        named[name] = value
    _write(tmp_path / "m.gguf", dense.config, named)

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
