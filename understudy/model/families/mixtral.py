"""Mixtral (arXiv 2401.04088): llama with a mixture in every layer, weights normalised."""

from dataclasses import replace

from understudy.model.config import ModelConfig
from understudy.model.families.family import Family, GgufNames, read_shards, shards_for
from understudy.model.fields import Fields


def _read(fields: Fields, config: ModelConfig) -> ModelConfig:
    num_experts = fields.integer("num_local_experts")
    return replace(
        config,
        num_experts=num_experts,
        num_experts_per_token=fields.integer("num_experts_per_tok"),
        num_ffn_shards=read_shards(fields, num_experts=num_experts),
    )


def _read_gguf(fields: Fields, config: ModelConfig) -> ModelConfig:
    num_experts = fields.integer("expert_count")
    return replace(
        config,
        num_experts=num_experts,
        num_experts_per_token=fields.integer("expert_used_count"),
        num_ffn_shards=shards_for(num_experts=num_experts),
    )


def _write(config: ModelConfig) -> dict[str, object]:
    return {
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.num_experts_per_token,
    }


FAMILY = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    read=_read,
    write=_write,
    renames=(
        ("block_sparse_moe.", "mlp."),
        (".w1.", ".gate_proj."),
        (".w2.", ".down_proj."),
        (".w3.", ".up_proj."),
    ),
    # GGUF files say llama and name the number of experts.
    gguf=GgufNames(architecture="llama", has_interleaved_rows=True, read=_read_gguf),
)
