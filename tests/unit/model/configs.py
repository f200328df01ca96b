"""Tiny configs of every kind of model that the forward pass knows, without any file."""

from dataclasses import replace

from tests.unit.model.conftest import DENSE, FACTORISED, MIXTURE
from understudy.model.config import ModelConfig
from understudy.model.traits import GateRule, LatentShape, RopeScaling

LATENT_SHAPE = LatentShape(kv_rank=12, nope_dim=10, rope_dim=6, value_dim=14, query_rank=20)
FINE = replace(
    DENSE,
    family="deepseek_v3",
    tie_embeddings=False,
    num_kv_heads=4,
    head_dim=16,
    latent=LATENT_SHAPE,
    num_experts=8,
    num_experts_per_token=3,
    expert_size=32,
    shared_size=32,
    dense_layers=(0,),
    gate=GateRule(
        scoring="sigmoid",
        scale=1.5,
        has_bias=True,
        num_groups=4,
        num_top_groups=2,
        group_score="top2",
    ),
)
DEEPSEEK_V2 = replace(
    FINE,
    family="deepseek_v2",
    gate=GateRule(is_normalised=False, scale=1.5, num_groups=4, num_top_groups=2),
)
LONGCAT = replace(
    FINE,
    family="longcat_flash",
    num_layers=2,
    attentions_per_layer=2,
    latent=replace(LATENT_SHAPE, query_scale=(32 / 20) ** 0.5, kv_scale=(32 / 12) ** 0.5),
    num_experts=6,
    num_zero_experts=3,
    num_experts_per_token=4,
    shared_size=0,
    dense_layers=(),
    gate=GateRule(is_normalised=False, scale=6.0, has_bias=True),
)
STEP3 = replace(
    DENSE,
    family="step3_text",
    tie_embeddings=False,
    num_kv_heads=1,
    query_rank=64,
    num_experts=4,
    num_experts_per_token=2,
    expert_size=32,
    shared_size=64,
    dense_layers=(0, 2),
    gate=GateRule(is_normalised=False),
)
QWEN2 = replace(DENSE, family="qwen2", has_qkv_bias=True)
QWEN3 = replace(DENSE, family="qwen3", head_dim=16, has_qk_norm=True)
QWEN2_MOE = replace(
    QWEN2,
    family="qwen2_moe",
    num_experts=4,
    num_experts_per_token=2,
    expert_size=32,
    shared_size=64,
    has_shared_gate=True,
    gate=GateRule(is_normalised=False),
)
QWEN3_MOE = replace(
    QWEN3, family="qwen3_moe", num_experts=8, num_experts_per_token=3, expert_size=32
)
STRETCHED = replace(
    QWEN2,
    rope_scaling=RopeScaling(kind="yarn", factor=4.0, original_positions=32),
)
ALL: dict[str, ModelConfig] = {
    "llama": DENSE,
    "factorised": FACTORISED,
    "mixtral": MIXTURE,
    "qwen2": QWEN2,
    "qwen2, yarn": STRETCHED,
    "qwen3": QWEN3,
    "qwen2_moe": QWEN2_MOE,
    "qwen3_moe": QWEN3_MOE,
    "deepseek_v2": DEEPSEEK_V2,
    "deepseek_v3": FINE,
    "longcat_flash": LONGCAT,
    "step3_text": STEP3,
}
