"""Step-3 (arXiv 2507.19427): multi-matrix factorisation attention, few large experts.

The language model only; files of the vision model are refused as another family.
"""

from dataclasses import replace

from understudy.errors import FailedPrecondition
from understudy.model.config import ModelConfig
from understudy.model.families.family import Family, read_shards
from understudy.model.fields import Fields
from understudy.model.traits import GateRule


def _read(fields: Fields, config: ModelConfig) -> ModelConfig:
    num_experts = fields.integer("moe_num_experts")
    mixtures = _layers(fields)
    dense = tuple(layer for layer in range(config.num_layers) if layer not in mixtures)
    return replace(
        config,
        query_rank=fields.optional_integer("share_q_dim"),
        num_experts=num_experts,
        num_experts_per_token=fields.integer("moe_top_k"),
        expert_size=fields.integer("moe_intermediate_size"),
        shared_size=fields.integer("share_expert_dim"),
        dense_layers=dense,
        gate=GateRule(is_normalised=fields.flag("norm_expert_weight", default=False)),
        num_ffn_shards=read_shards(
            fields, num_experts=num_experts, ffn_size=config.ffn_size if dense else None
        ),
    )


def _layers(fields: Fields) -> frozenset[int]:
    """Return the layers with mixtures, which files list as numbers or as text with commas."""
    listed = fields.raw.get("moe_layers_enum")
    if not isinstance(listed, str):
        return frozenset(fields.integers("moe_layers_enum"))
    try:
        return frozenset(int(number) for number in listed.split(","))
    except ValueError as error:
        raise FailedPrecondition(
            f"{fields.source} has {listed[:100]!r} for 'moe_layers_enum', which lists no layers.",
            {"key": "moe_layers_enum"},
        ) from error


def _write(config: ModelConfig) -> dict[str, object]:
    return {
        "share_q_dim": config.query_rank,
        "moe_num_experts": config.num_experts,
        "moe_top_k": config.num_experts_per_token,
        "moe_intermediate_size": config.expert_width,
        "share_expert_dim": config.shared_size,
        "moe_layers_enum": [
            layer for layer in range(config.num_layers) if config.is_mixture(layer)
        ],
        "norm_expert_weight": config.gate.is_normalised,
    }


FAMILY = Family(
    name="step3_text",
    architecture="Step3TextForCausalLM",
    read=_read,
    write=_write,
    keys={
        "num_key_value_heads": "num_attention_groups",
        "max_position_embeddings": "max_position_embedding",
    },
    # The files hold all experts of a layer in one tensor, which the loader takes apart.
    renames=(
        (".moe.gate.", ".mlp.gate."),
        (".moe.", ".mlp.experts."),
        (".share_expert.", ".mlp.shared_experts."),
    ),
)
