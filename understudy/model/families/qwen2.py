"""Qwen2 and Qwen2.5 (arXiv 2407.10671): llama with biases on queries, keys and values."""

from dataclasses import replace

from understudy.model.config import ModelConfig
from understudy.model.families.family import Family, GgufNames
from understudy.model.fields import Fields


def with_biases(_: Fields, config: ModelConfig) -> ModelConfig:
    """Return the config with biases on queries, keys and values."""
    return replace(config, has_qkv_bias=True)


FAMILY = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    read=with_biases,
    gguf=GgufNames(architecture="qwen2", read=with_biases),
)
