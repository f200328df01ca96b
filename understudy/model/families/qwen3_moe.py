"""Qwen3-MoE (arXiv 2505.09388): many small experts, no shared one; Qwen3's attention."""

from dataclasses import replace

from understudy.model.config import ModelConfig
from understudy.model.families.family import Family, GgufNames
from understudy.model.families.qwen_mixture import read_gguf_mixture, read_mixture, write_mixture
from understudy.model.fields import Fields


def _read(fields: Fields, config: ModelConfig) -> ModelConfig:
    return replace(read_mixture(fields, config), has_qk_norm=True)


def _read_gguf(fields: Fields, config: ModelConfig) -> ModelConfig:
    # llama.cpp normalises the weights of this architecture, as every published Qwen3-MoE asks.
    return replace(read_gguf_mixture(fields, config), has_qk_norm=True)


FAMILY = Family(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    read=_read,
    write=write_mixture,
    gguf=GgufNames(architecture="qwen3moe", read=_read_gguf),
)
