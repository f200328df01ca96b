"""Qwen3 (arXiv 2505.09388): no biases; queries and keys are normed head by head."""

from dataclasses import replace

from understudy.model.config import ModelConfig
from understudy.model.families.family import Family, GgufNames
from understudy.model.fields import Fields


def with_norms(_: Fields, config: ModelConfig) -> ModelConfig:
    """Return the config with normed queries and keys."""
    return replace(config, has_qk_norm=True)


FAMILY = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    read=with_norms,
    gguf=GgufNames(architecture="qwen3", read=with_norms),
)
