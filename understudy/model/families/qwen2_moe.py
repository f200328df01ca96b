"""Qwen2-MoE (arXiv 2407.10671, section 2.2.2): a shared expert behind a sigmoid of its own."""

from dataclasses import replace

from understudy.model.config import ModelConfig
from understudy.model.families.family import Family, GgufNames
from understudy.model.families.qwen_mixture import read_gguf_mixture, read_mixture, write_mixture
from understudy.model.fields import Fields
from understudy.model.traits import GateRule


def _read(fields: Fields, config: ModelConfig) -> ModelConfig:
    return replace(
        read_mixture(fields, config),
        shared_size=fields.integer("shared_expert_intermediate_size"),
        has_shared_gate=True,
        has_qkv_bias=fields.flag("qkv_bias", default=True),
    )


def _read_gguf(fields: Fields, config: ModelConfig) -> ModelConfig:
    return replace(
        read_gguf_mixture(fields, config),
        shared_size=fields.integer("expert_shared_feed_forward_length"),
        has_shared_gate=True,
        has_qkv_bias=True,
        gate=GateRule(is_normalised=False),
    )


def _write(config: ModelConfig) -> dict[str, object]:
    return {
        **write_mixture(config),
        "shared_expert_intermediate_size": config.shared_size,
        "qkv_bias": config.has_qkv_bias,
    }


FAMILY = Family(
    name="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    read=_read,
    write=_write,
    renames=((".shared_expert.", ".shared_experts."),),
    gguf=GgufNames(architecture="qwen2moe", read=_read_gguf),
)
