"""DeepSeek-V2 (arXiv 2405.04434): latent attention, fine-grained and shared experts."""

from dataclasses import replace

from understudy.errors import FailedPrecondition
from understudy.model.config import ModelConfig
from understudy.model.families.family import Family, read_shards
from understudy.model.fields import Fields
from understudy.model.traits import GateRule, LatentShape


def read_latent(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Return the config with the latent attention that `config.json` describes."""
    latent = LatentShape(
        kv_rank=fields.integer("kv_lora_rank"),
        nope_dim=fields.integer("qk_nope_head_dim"),
        rope_dim=fields.integer("qk_rope_head_dim"),
        value_dim=fields.integer("v_head_dim"),
        query_rank=fields.optional_integer("q_lora_rank"),
        is_interleaved=fields.flag("rope_interleave", default=True),
    )
    return replace(
        config,
        latent=latent,
        num_kv_heads=config.num_heads,
        head_dim=latent.nope_dim + latent.rope_dim,
    )


def write_latent(config: ModelConfig) -> dict[str, object]:
    """Return the keys that `read_latent` reads."""
    latent = config.latent
    assert latent is not None
    return {
        "kv_lora_rank": latent.kv_rank,
        "qk_nope_head_dim": latent.nope_dim,
        "qk_rope_head_dim": latent.rope_dim,
        "v_head_dim": latent.value_dim,
        "q_lora_rank": latent.query_rank,
        "rope_interleave": latent.is_interleaved,
        "head_dim": latent.rope_dim,
    }


def read_mixture(fields: Fields, config: ModelConfig, gate: GateRule) -> ModelConfig:
    """Return the config with a mixture after the first dense layers."""
    num_experts = fields.integer("n_routed_experts")
    num_dense = fields.integer("first_k_dense_replace", 0)
    fields.require("moe_layer_freq", 1)
    expert_size = fields.integer("moe_intermediate_size")
    return replace(
        config,
        num_experts=num_experts,
        num_experts_per_token=fields.integer("num_experts_per_tok"),
        expert_size=expert_size,
        shared_size=expert_size * fields.integer("n_shared_experts", 0),
        dense_layers=tuple(range(min(num_dense, config.num_layers))),
        gate=gate,
        num_ffn_shards=read_shards(
            fields, num_experts=num_experts, ffn_size=config.ffn_size if num_dense else None
        ),
    )


def write_mixture(config: ModelConfig) -> dict[str, object]:
    """Return the keys that `read_mixture` and the gates of V2 and V3 read."""
    return {
        "n_routed_experts": config.num_experts,
        "num_experts_per_tok": config.num_experts_per_token,
        "first_k_dense_replace": len(config.dense_layers),
        "moe_intermediate_size": config.expert_width,
        "n_shared_experts": config.shared_size // config.expert_width,
        "routed_scaling_factor": config.gate.scale,
        "n_group": config.gate.num_groups,
        "topk_group": config.gate.num_top_groups,
        "norm_topk_prob": config.gate.is_normalised,
    }


def _read(fields: Fields, config: ModelConfig) -> ModelConfig:
    method = fields.text("topk_method") if fields.has("topk_method") else "greedy"
    if method not in ("greedy", "group_limited_greedy"):
        raise FailedPrecondition(
            f"{fields.source} has the topk_method {method!r}; greedy and group_limited_greedy"
            " are supported.",
            {"key": "topk_method"},
        )
    # Published code disagrees on what a normalised gate of this family would be; none has one.
    fields.require("norm_topk_prob", supported=False)
    fields.require("scoring_func", "softmax")
    is_limited = method == "group_limited_greedy"
    gate = GateRule(
        is_normalised=False,
        scale=fields.number("routed_scaling_factor", 1.0),
        num_groups=fields.integer("n_group") if is_limited else 1,
        num_top_groups=fields.integer("topk_group") if is_limited else 1,
    )
    return read_mixture(fields, read_latent(fields, config), gate)


def _write(config: ModelConfig) -> dict[str, object]:
    method = "group_limited_greedy" if config.gate.num_groups > 1 else "greedy"
    return {**write_latent(config), **write_mixture(config), "topk_method": method}


FAMILY = Family(name="deepseek_v2", architecture="DeepseekV2ForCausalLM", read=_read, write=_write)
