"""The mixtures of Qwen2-MoE and Qwen3-MoE: which layers have one, and how its files spell it."""

from dataclasses import replace

from understudy.model.config import ModelConfig
from understudy.model.families.family import read_shards, shards_for
from understudy.model.fields import Fields
from understudy.model.traits import GateRule


def read_mixture(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Return the config with the mixture that `config.json` describes."""
    key = "num_experts" if fields.has("num_experts") else "num_local_experts"
    num_experts = fields.integer(key)
    step = fields.integer("decoder_sparse_step", 1)
    dense = set(fields.integers("mlp_only_layers"))
    dense |= {layer for layer in range(config.num_layers) if (layer + 1) % max(1, step)}
    return replace(
        config,
        num_experts=num_experts,
        num_experts_per_token=fields.integer("num_experts_per_tok"),
        expert_size=fields.integer("moe_intermediate_size"),
        dense_layers=tuple(sorted(dense.intersection(range(config.num_layers)))),
        gate=GateRule(is_normalised=fields.flag("norm_topk_prob", default=False)),
        num_ffn_shards=read_shards(
            fields, num_experts=num_experts, ffn_size=config.ffn_size if dense else None
        ),
    )


def write_mixture(config: ModelConfig) -> dict[str, object]:
    """Return the keys that `read_mixture` reads."""
    return {
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.num_experts_per_token,
        "moe_intermediate_size": config.expert_width,
        "mlp_only_layers": list(config.dense_layers),
        "decoder_sparse_step": 1,
        "norm_topk_prob": config.gate.is_normalised,
    }


def read_gguf_mixture(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Return the config with the mixture in every layer that GGUF metadata describe."""
    num_experts = fields.integer("expert_count")
    return replace(
        config,
        num_experts=num_experts,
        num_experts_per_token=fields.integer("expert_used_count"),
        expert_size=fields.integer("expert_feed_forward_length"),
        num_ffn_shards=shards_for(num_experts=num_experts),
    )
