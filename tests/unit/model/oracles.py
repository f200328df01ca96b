"""Tiny seeded models of every family that transformers implements, as the reference of ours."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from understudy.model.decoder import Decoder
from understudy.model.paged import PagedKv, PagedSequence
from understudy.model.weights import LoadedModel, load_model

BLOCK_SIZE = 4
NUM_NEW = 8
SHAPE: Mapping[str, object] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_theta": 1000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT: Mapping[str, object] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 12,
    "q_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
}
FINE: Mapping[str, object] = {
    **LATENT,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 16,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
}
QWEN_EXPERTS: Mapping[str, object] = {
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 16,
}
YARN: Mapping[str, object] = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _scaled(**scaling: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_theta": 1000.0, **scaling}}


CASES: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama, linear rope": ("llama", _scaled(rope_type="linear", factor=2.5)),
    "llama, dynamic rope": ("llama", _scaled(rope_type="dynamic", factor=2.0)),
    "llama, llama3 rope": (
        "llama",
        _scaled(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=24,
        ),
    ),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "llama, yarn with its own factor": (
        "llama",
        {"rope_parameters": {**YARN, "attention_factor": 0.8, "beta_fast": 16, "truncate": False}},
    ),
    "qwen2": ("qwen2", {}),
    "qwen3, wide heads": ("qwen3", {"head_dim": 16}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("qwen2_moe", {**QWEN_EXPERTS, "shared_expert_intermediate_size": 20}),
    "qwen3_moe": ("qwen3_moe", {**QWEN_EXPERTS, "head_dim": 16}),
    "qwen3_moe, normalised": ("qwen3_moe", {**QWEN_EXPERTS, "norm_topk_prob": True}),
    "qwen3_moe, a dense layer": ("qwen3_moe", {**QWEN_EXPERTS, "mlp_only_layers": [1]}),
    "qwen3_moe, every second layer": ("qwen3_moe", {**QWEN_EXPERTS, "decoder_sparse_step": 2}),
    "deepseek_v2, greedy": ("deepseek_v2", {**FINE, "q_lora_rank": None}),
    "deepseek_v2, groups and yarn": (
        "deepseek_v2",
        {
            **FINE,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.6},
        },
    ),
    "deepseek_v3": ("deepseek_v3", {**FINE, "n_group": 4, "topk_group": 2}),
    "deepseek_v3, one group, halves, yarn": (
        "deepseek_v3",
        {
            **FINE,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
            "rope_interleave": False,
            "q_lora_rank": None,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "longcat_flash": (
        "longcat_flash",
        {
            **LATENT,
            "num_layers": 2,
            "ffn_hidden_size": 64,
            "head_dim": 6,
            "n_routed_experts": 6,
            "zero_expert_num": 3,
            "moe_topk": 4,
            "expert_ffn_hidden_size": 16,
        },
    ),
}


def reference(case: str, seed: int = 3) -> PreTrainedModel:
    """Return the transformers model of a case with seeded weights, biases included."""
    family, changes = CASES[case]
    shape = dict(SHAPE)
    if family == "longcat_flash":
        del shape["num_hidden_layers"], shape["intermediate_size"]
    config = AutoConfig.for_model(family, **{**shape, **changes})
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for name, parameter in model.named_parameters():
        is_norm = parameter.dim() == 1 and not name.endswith(".bias")
        parameter.data.normal_(1.0 if is_norm else 0.0, 0.3)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0.0, 0.2)
    return model.eval()


def generated(model: PreTrainedModel, tokens: Tensor, num_new: int = NUM_NEW) -> Tensor:
    """Return prompt and greedy continuation as transformers computes them."""
    with torch.inference_mode():
        both: Tensor = model.generate(
            tokens[None],
            attention_mask=torch.ones(1, len(tokens), dtype=torch.int64),
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return both[0]


def load_saved(model: PreTrainedModel, directory: Path) -> LoadedModel:
    """Write a transformers model as its files are published, and load them."""
    model.save_pretrained(directory)
    return load_model(directory)


def paged_logits(
    model: Decoder, kv: PagedKv, tokens: Tensor, blocks: list[int], *ends: int, start: int = 0
) -> Tensor:
    """Return the logits of `tokens` from `start` on, computed in chunks that end at `ends`."""
    logits = []
    for end in ends:
        with torch.inference_mode():
            sequence = PagedSequence(blocks, start, end - start)
            hidden = model.advance(tokens[start:end], kv, [sequence])
            logits.append(model.logits(hidden))
        start = end
    return torch.cat(logits)


def decode(
    model: Decoder, kv: PagedKv, tokens: Tensor, blocks: list[int], num_cached: int
) -> Tensor:
    """Return `tokens` continued greedily by `NUM_NEW`, of which `num_cached` are in the cache."""
    for _ in range(NUM_NEW):
        end = len(tokens)
        logits = paged_logits(model, kv, tokens, blocks, end, start=num_cached)
        tokens, num_cached = torch.cat((tokens, logits[-1:].argmax(-1))), end
    return tokens
