"""Writes GGUF files as llama.cpp's converter does."""

from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from tests.kernels.builders import raw_blocks
from understudy.model.config import ModelConfig
from understudy_kernels import Format
from understudy_kernels.packing import RAW_BYTES

Encode = Callable[[np.ndarray, gguf.GGMLQuantizationType], np.ndarray]
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


def encode_any(array: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Return blocks of any kind; of those that gguf reads and does not write, random ones.

    Those deviate by about 0.1.
    """
    smaller = {"Q4_K": (1 / 32, (0, 2)), "Q6_K": (1 / 128, (208,))}.get(kind.name)
    if smaller is None:
        return gguf.quants.quantize(array, kind)
    factor, offsets = smaller
    raw = raw_blocks(Format[kind.name], *array.shape, seed=array.shape[0])
    blocks = raw.reshape(-1, RAW_BYTES[Format[kind.name]])
    for at in offsets:
        scales = np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16) * np.float16(factor)
        blocks[:, at : at + 2] = scales.view(np.uint8)
    return raw


def named_tensors(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return canonical tensors as llama.cpp's converter names and orders them."""
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


def write_gguf(
    path: Path,
    config: ModelConfig,
    named: Mapping[str, Tensor],
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    encode: Encode = gguf.quants.quantize,
) -> None:
    """Write a GGUF file; `kind` applies to matrices, whose bytes are what `encode` returns."""
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
    _add_rope(writer, config)
    for name, value in named.items():
        is_matrix = value.dim() > 1
        array = value.contiguous().numpy()
        data = encode(array, kind) if is_matrix else array
        writer.add_tensor(name, data, raw_dtype=kind if is_matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_rope(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    if config.rope_scaling is not None and config.rope_scaling.kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(config.rope_scaling.factor)
        writer.add_rope_scaling_orig_ctx_len(config.rope_scaling.original_positions)
