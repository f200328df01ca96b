"""Refuses configs whose sizes do not fit together, naming the field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from understudy.errors import FailedPrecondition

if TYPE_CHECKING:
    from understudy.model.config import ModelConfig

MAX_DIMENSION: Final = 1 << 24
MAX_EXPERTS: Final = 1 << 16
"""Expert ids travel as 16-bit integers."""


def check(config: ModelConfig) -> None:
    """Raise FailedPrecondition naming the first field that does not fit."""
    for name, size in (
        ("vocab_size", config.vocab_size),
        ("hidden_size", config.hidden_size),
        ("num_layers", config.num_layers),
        ("num_heads", config.num_heads),
        ("num_kv_heads", config.num_kv_heads),
        ("head_dim", config.head_dim),
        ("ffn_size", config.ffn_size),
        ("max_positions", config.max_positions),
        ("num_ffn_shards", config.num_ffn_shards),
        ("embedding_size", config.embedding_width),
        ("expert_size", config.expert_width),
        ("shared_size", config.shared_size + 1),
        ("attentions_per_layer", config.attentions_per_layer),
    ):
        _require(name, size, "is out of range", is_met=0 < size < MAX_DIMENSION)
    rotary_dim, num_kv_heads = config.rotary_dim, config.num_kv_heads
    is_even = rotary_dim > 0 and rotary_dim % 2 == 0
    _require("head_dim", rotary_dim, "must be even for rotary positions", is_met=is_even)
    heads_divide = config.num_heads % num_kv_heads == 0
    problem = f"must divide num_heads {config.num_heads}"
    _require("num_kv_heads", num_kv_heads, problem, is_met=heads_divide)
    _check_latent(config)
    if config.is_moe:
        _check_experts(config)
    _check_shards(config)
    _check_rope(config)


def _check_latent(config: ModelConfig) -> None:
    if config.latent is None:
        return
    for name, size in (
        ("kv_rank", config.latent.kv_rank),
        ("nope_dim", config.latent.nope_dim),
        ("value_dim", config.latent.value_dim),
    ):
        _require(name, size, "is out of range", is_met=0 < size < MAX_DIMENSION)
    expected = config.latent.nope_dim + config.latent.rope_dim
    problem = f"must be {expected}, the rotated and other numbers of a head"
    _require("head_dim", config.head_dim, problem, is_met=config.head_dim == expected)


def _check_experts(config: ModelConfig) -> None:
    num_experts, num_active = config.num_experts, config.num_experts_per_token
    num_candidates = num_experts + config.num_zero_experts
    in_range = config.num_zero_experts >= 0 and num_candidates < MAX_EXPERTS
    _require("num_experts", num_experts, "is out of range", is_met=in_range)
    is_met = 0 < num_active <= num_candidates
    problem = f"must lie between 1 and {num_candidates} experts"
    _require("num_experts_per_token", num_active, problem, is_met=is_met)
    gate = config.gate
    if gate.num_groups == 1:
        return
    least = 2 if gate.group_score == "top2" else 1
    is_divided = gate.num_groups > 0 and num_candidates % gate.num_groups == 0
    problem = f"must divide {num_candidates} experts into groups of at least {least}"
    is_met = is_divided and num_candidates // gate.num_groups >= least
    _require("num_groups", gate.num_groups, problem, is_met=is_met)
    reachable = gate.num_top_groups * (num_candidates // gate.num_groups)
    is_met = 0 < gate.num_top_groups <= gate.num_groups and num_active <= reachable
    problem = f"of {gate.num_groups} groups leave no {num_active} experts to choose"
    _require("num_top_groups", gate.num_top_groups, problem, is_met=is_met)


def _check_shards(config: ModelConfig) -> None:
    sharded = [("num_experts", config.num_experts)] if config.is_moe else []
    if not all(config.is_mixture(layer) for layer in range(config.num_layers)):
        sharded.append(("ffn_size", config.ffn_size))
    for what, size in sharded:
        problem = f"must divide {what} {size}"
        is_met = size % config.num_ffn_shards == 0
        _require("num_ffn_shards", config.num_ffn_shards, problem, is_met=is_met)


def _check_rope(config: ModelConfig) -> None:
    scaling = config.rope_scaling
    if scaling is None:
        return
    _require("rope factor", scaling.factor, "is below 1", is_met=scaling.factor >= 1.0)
    if scaling.kind in ("dynamic", "llama3", "yarn"):
        original = scaling.original_positions
        _require("original_positions", original, "is out of range", is_met=original > 0)
    if scaling.kind == "dynamic":
        problem = "is too small for dynamic rope scaling"
        _require("head_dim", config.rotary_dim, problem, is_met=config.rotary_dim > 2)
    if scaling.kind == "factors":
        num_factors = len(scaling.factors)
        problem = f"must be {config.rotary_dim // 2}, one for each frequency"
        is_met = num_factors * 2 == config.rotary_dim and min(scaling.factors) > 0
        _require("number of rope factors", num_factors, problem, is_met=is_met)


def _require(name: str, value: float, problem: str, *, is_met: bool) -> None:
    if not is_met:
        raise FailedPrecondition(f"The model config's {name} {value} {problem}.", {"key": name})
