"""LongCat-Flash (arXiv 2509.01322): experts of zero computation, two attentions per layer."""

from dataclasses import replace

from understudy.model.config import ModelConfig
from understudy.model.families.deepseek_v2 import read_latent, write_latent
from understudy.model.families.family import Family, read_shards
from understudy.model.fields import Fields
from understudy.model.traits import GateRule


def _read(fields: Fields, config: ModelConfig) -> ModelConfig:
    fields.require("router_bias", supported=False)
    fields.require("zero_expert_type", "identity")
    for key in ("mla_scale_q_lora", "mla_scale_kv_lora"):
        fields.require(key, supported=True)
    config = read_latent(fields, config)
    latent, num_experts = config.latent, fields.integer("n_routed_experts")
    assert latent is not None
    query_rank = fields.integer("q_lora_rank")
    return replace(
        config,
        latent=replace(
            latent,
            query_scale=(config.hidden_size / query_rank) ** 0.5,
            kv_scale=(config.hidden_size / latent.kv_rank) ** 0.5,
        ),
        attentions_per_layer=2,
        num_experts=num_experts,
        num_zero_experts=fields.integer("zero_expert_num", 0),
        num_experts_per_token=fields.integer("moe_topk"),
        expert_size=fields.integer("expert_ffn_hidden_size"),
        gate=GateRule(
            is_normalised=False,
            scale=fields.number("routed_scaling_factor", 6.0),
            has_bias=True,
        ),
        num_ffn_shards=read_shards(fields, num_experts=num_experts),
    )


def _write(config: ModelConfig) -> dict[str, object]:
    return {
        **write_latent(config),
        "n_routed_experts": config.num_experts,
        "zero_expert_num": config.num_zero_experts,
        "moe_topk": config.num_experts_per_token,
        "expert_ffn_hidden_size": config.expert_width,
        "routed_scaling_factor": config.gate.scale,
    }


def _is_ignored(config: ModelConfig, name: str) -> bool:
    if name.startswith("model.mtp."):
        return True
    # transformers gives weights to experts of zero computation and never reads them.
    _, found, rest = name.partition(".mlp.experts.")
    number = rest.partition(".")[0]
    return bool(found) and number.isdigit() and int(number) >= config.num_experts


FAMILY = Family(
    name="longcat_flash",
    architecture="LongcatFlashForCausalLM",
    read=_read,
    write=_write,
    keys={"num_hidden_layers": "num_layers", "intermediate_size": "ffn_hidden_size"},
    renames=(
        (".mlp.router.classifier.", ".mlp.gate."),
        (".mlp.router.e_score", ".mlp.gate.e_score"),
    ),
    is_ignored=_is_ignored,
)
