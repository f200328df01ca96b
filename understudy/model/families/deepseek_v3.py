"""DeepSeek-V3 (arXiv 2412.19437): V2 with sigmoid scores and a bias that balances the choice."""

from understudy.model.config import ModelConfig
from understudy.model.families.deepseek_v2 import (
    read_latent,
    read_mixture,
    write_latent,
    write_mixture,
)
from understudy.model.families.family import Family
from understudy.model.fields import Fields
from understudy.model.traits import GateRule


def _read(fields: Fields, config: ModelConfig) -> ModelConfig:
    fields.require("topk_method", "noaux_tc")
    fields.require("scoring_func", "sigmoid")
    gate = GateRule(
        scoring="sigmoid",
        is_normalised=fields.flag("norm_topk_prob", default=True),
        scale=fields.number("routed_scaling_factor", 2.5),
        has_bias=True,
        num_groups=fields.integer("n_group", 8),
        num_top_groups=fields.integer("topk_group", 4),
        group_score="top2",
    )
    return read_mixture(fields, read_latent(fields, config), gate)


def _write(config: ModelConfig) -> dict[str, object]:
    return {**write_latent(config), **write_mixture(config)}


def _is_ignored(config: ModelConfig, name: str) -> bool:
    # Layers beyond the last predict several tokens at once; decoding one by one has no use for
    # them.
    return name.startswith(f"model.layers.{config.num_layers}.")


FAMILY = Family(
    name="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    read=_read,
    write=_write,
    is_ignored=_is_ignored,
)
