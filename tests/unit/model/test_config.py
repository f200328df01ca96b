import json
from dataclasses import replace

import pytest

from tests.unit.model.configs import ALL
from tests.unit.model.conftest import DENSE, MIXTURE
from understudy.errors import FailedPrecondition
from understudy.model.config import ModelConfig
from understudy.model.families import read_gguf_config, read_hf, write_hf
from understudy.model.traits import RopeKind, RopeScaling

SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "rope_theta": 100000,
    "rms_norm_eps": 1e-05,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_interleaved": False,
    "rope_scaling": None,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "max_position_embeddings": 163840,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "tie_word_embeddings": False,
}


def test_smollm2_costs_its_parameters_minus_the_free_embedding_lookup() -> None:
    config = read_hf(SMOLLM2)

    # Tied: the table counts once, as the LM head. 134,515,008 is the published parameter count.
    assert config.cost_per_position() == 134_515_008
    assert (config.head_dim, config.eos_ids, config.num_ffn_shards) == (64, (2,), 2)


def test_attention_costs_scores_and_sums_of_every_position_it_sees() -> None:
    assert read_hf(SMOLLM2).cost_per_seen() == 30 * 9 * (64 + 64)
    # A latent of 512 numbers is scored with its rotated key of 64 and summed.
    assert read_hf(DEEPSEEK_V3).cost_per_seen() == 61 * 128 * (512 + 64 + 512)


def test_mixture_costs_only_its_active_experts(mixture_config: ModelConfig) -> None:
    all_active = replace(mixture_config, num_experts_per_token=4)
    expert_size = 3 * mixture_config.ffn_size * mixture_config.hidden_size

    difference = all_active.cost_per_position() - mixture_config.cost_per_position()
    assert difference == 2 * expert_size * mixture_config.num_layers


def test_factorised_embedding_counts_its_projections(dense_config: ModelConfig) -> None:
    factorised = replace(dense_config, embedding_size=12)

    saved_in_head = dense_config.vocab_size * (32 - 12)
    expected = dense_config.cost_per_position() - saved_in_head + 2 * 12 * 32
    assert factorised.cost_per_position() == expected


@pytest.mark.parametrize("fixture", ["dense_config", "mixture_config"])
def test_to_hf_reads_back_as_the_same_config(fixture: str, request: pytest.FixtureRequest) -> None:
    config = replace(request.getfixturevalue(fixture), embedding_size=12, num_ffn_shards=1)

    again = read_hf(json.loads(json.dumps(write_hf(config))))

    assert again == config
    assert again.digest() == config.digest()


def test_digest_changes_with_any_field(dense_config: ModelConfig) -> None:
    assert dense_config.digest() != replace(dense_config, rope_theta=10_001.0).digest()


def test_rope_theta_is_found_in_rope_parameters() -> None:
    raw = {key: value for key, value in SMOLLM2.items() if key != "rope_theta"}
    raw["rope_parameters"] = {"rope_type": "default", "rope_theta": 500.0}

    assert read_hf(raw).rope_theta == 500.0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gpt_neox"}, "'gpt_neox' is not supported"),
        ({"model_type": None}, "lacks the key 'model_type'"),
        ({"hidden_size": "576"}, "'hidden_size'"),
        ({"hidden_size": True}, "'hidden_size'"),
        ({"rms_norm_eps": "small"}, "'rms_norm_eps'"),
        ({"tie_word_embeddings": 1}, "'tie_word_embeddings'"),
        ({"eos_token_id": [2, "x"]}, "'eos_token_id'"),
        ({"attention_bias": True}, "'attention_bias'"),
        ({"hidden_act": "gelu"}, "'hidden_act'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4}}, "'longrope'"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope factor 0.5 is below 1"),
        ({"rope_scaling": {"type": "linear"}}, "lacks the key 'factor'"),
        ({"partial_rotary_factor": 0.5}, "'partial_rotary_factor'"),
        ({"sliding_window": 4096}, "'sliding_window'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "'sliding_attention'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "'quantization_config'"),
        ({"rope_parameters": 7}, "'rope_parameters'"),
        ({"num_key_value_heads": 2}, "must divide num_heads 9"),
        ({"num_hidden_layers": 0}, "num_layers 0 is out of range"),
        ({"vocab_size": 1 << 40}, "vocab_size"),
        ({"head_dim": 63}, "must be even"),
        ({"num_ffn_shards": 5}, "must divide ffn_size 1536"),
        ({"embedding_size": -1}, "embedding_size -1"),
    ],
)
def test_unusable_config_is_refused_by_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(FailedPrecondition, match=named):
        read_hf({**SMOLLM2, **change})


def test_more_active_experts_than_experts_are_refused(mixture_config: ModelConfig) -> None:
    with pytest.raises(FailedPrecondition, match="5 must lie between 1 and 4 experts"):
        replace(mixture_config, num_experts_per_token=5)


@pytest.mark.parametrize(
    ("ffn_size", "num_shards"), [(1535, 1), (96, 1), (128, 2), (4864, 2), (11008, 2)]
)
def test_an_ffn_is_cut_between_blocks_or_not_at_all(ffn_size: int, num_shards: int) -> None:
    assert read_hf({**SMOLLM2, "intermediate_size": ffn_size}).num_ffn_shards == num_shards
    # Dense layers of a mixture are cut likewise.
    assert read_hf({**DEEPSEEK_V3, "intermediate_size": 18464}).num_ffn_shards == 1
    assert read_hf({**DEEPSEEK_V3, "n_routed_experts": 255, "n_group": 1}).num_ffn_shards == 1


def test_unknown_rope_scaling_in_gguf_metadata_is_refused() -> None:
    raw: dict[str, object] = {
        "general.architecture": "llama",
        "llama.embedding_length": 32,
        "llama.attention.head_count": 4,
        "llama.feed_forward_length": 48,
        "llama.vocab_size": 97,
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.scaling.type": "longrope",
    }
    with pytest.raises(FailedPrecondition, match="'longrope'"):
        read_gguf_config(raw, tie_embeddings=True)


def test_digests_of_models_from_before_a_field_came_stay() -> None:
    # Adapters and KV chunks name models by digests that contain these.
    dense = replace(DENSE, ffn_size=48)
    mixture = replace(MIXTURE, ffn_size=48, embedding_size=12)

    assert dense.digest() == "488f4f343b23d2251b7cad50967b19b7acf427523582cfc6c846928aef90336c"
    assert mixture.digest() == "00746b2be09bdc64b855573bbe2712803cb5251248655a40d442e600fd2eff5a"


def test_digest_changes_with_any_later_field() -> None:
    digests = {config.digest() for config in ALL.values()}
    stretched = replace(DENSE, rope_scaling=RopeScaling(kind="linear", factor=2.0))

    assert len(digests | {stretched.digest()}) == len(ALL) + 1


@pytest.mark.parametrize("name", ALL)
def test_config_of_every_family_reads_back_from_its_own_keys(name: str) -> None:
    assert read_hf(json.loads(json.dumps(write_hf(ALL[name])))) == ALL[name]


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling(kind="linear", factor=2.5),
        RopeScaling(kind="dynamic", factor=2.0, original_positions=64),
        RopeScaling(kind="llama3", factor=8.0, original_positions=64, high_freq_factor=3.0),
        RopeScaling(kind="yarn", factor=4.0, original_positions=32, mscale=0.7, is_truncated=False),
        RopeScaling(kind="factors", factors=(1.0, 1.5, 2.0, 8.0)),
    ],
    ids=lambda scaling: scaling.kind,
)
def test_rope_scaling_reads_back_from_its_keys(scaling: RopeScaling) -> None:
    config = replace(DENSE, rope_scaling=scaling)

    assert read_hf(json.loads(json.dumps(write_hf(config)))) == config


def test_deepseek_v3_as_published_is_read() -> None:
    config = read_hf(DEEPSEEK_V3)

    # 37 billion active parameters are published; the free embedding look-up is 0.9 of them.
    assert 36.0e9 < config.cost_per_position() < 37.5e9
    assert sum(entry.width for entry in config.cache_entries) == 576
    assert config.rope_scaling is not None
    assert config.rope_scaling.amplitude == 1.0
    assert config.rope_scaling.score_factor == pytest.approx(1.3689**2, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("deepseek_v3", {"topk_method": "greedy"}, "'noaux_tc'"),
        ("deepseek_v3", {"n_group": 3}, "num_groups 3 must divide 8 experts"),
        ("deepseek_v3", {"n_group": 8}, "groups of at least 2"),
        ("deepseek_v3", {"topk_group": 1}, "leave no 3 experts"),
        ("deepseek_v3", {"qk_rope_head_dim": 5}, "must be even"),
        ("deepseek_v3", {"kv_lora_rank": 0}, "kv_rank 0 is out of range"),
        ("deepseek_v3", {"moe_layer_freq": 2}, "'moe_layer_freq'"),
        ("deepseek_v3", {"num_experts_per_tok": 9}, "between 1 and 8"),
        ("longcat_flash", {"zero_expert_type": "drop"}, "'zero_expert_type'"),
        ("longcat_flash", {"router_bias": True}, "'router_bias'"),
        ("longcat_flash", {"zero_expert_num": -1}, "num_experts 6 is out of range"),
        ("qwen3_moe", {"norm_topk_prob": "yes"}, "'norm_topk_prob'"),
        ("qwen3_moe", {"use_sliding_window": True}, "'use_sliding_window'"),
        ("mixtral", {"num_local_experts": None}, "lacks the key 'num_local_experts'"),
        ("mixtral", {"num_ffn_shards": 3}, "must divide num_experts 4"),
    ],
)
def test_unusable_config_of_a_family_is_refused_by_name(
    name: str, change: dict[str, object], named: str
) -> None:
    with pytest.raises(FailedPrecondition, match=named):
        read_hf({**write_hf(ALL[name]), **change})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"topk_method": "noaux_tc"}, "'noaux_tc'"),
        ({"norm_topk_prob": True}, "'norm_topk_prob'"),
        ({"scoring_func": "sigmoid"}, "'scoring_func'"),
    ],
)
def test_gates_that_deepseek_v2_never_had_are_refused(
    change: dict[str, object], named: str
) -> None:
    raw = {**write_hf(ALL["deepseek_v3"]), "model_type": "deepseek_v2", "norm_topk_prob": False}

    assert read_hf(raw).gate.num_groups == 1
    with pytest.raises(FailedPrecondition, match=named):
        read_hf({**raw, **change})


@pytest.mark.parametrize("kind", ["dynamic", "llama3", "yarn"])
def test_scaling_without_trained_positions_is_refused(kind: RopeKind) -> None:
    with pytest.raises(FailedPrecondition, match="original_positions 0"):
        replace(DENSE, rope_scaling=RopeScaling(kind=kind, factor=2.0))


def test_wrong_number_of_rope_factors_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="number of rope factors 2 must be 4"):
        replace(DENSE, rope_scaling=RopeScaling(kind="factors", factors=(1.0, 2.0)))


def test_zero_computation_experts_take_their_share_of_the_cost() -> None:
    with_zero = ALL["longcat_flash"]
    without = replace(with_zero, num_zero_experts=0)
    expert_size = 3 * 32 * 32

    # 4 of 9 choices instead of 4 of 6, and a gate with rows and biases for 3 experts less.
    saved = 6 * expert_size * 4 // 6 - 6 * expert_size * 4 // 9
    gate = 3 * (32 + 1)
    difference = without.cost_per_position() - with_zero.cost_per_position()
    assert difference == with_zero.num_layers * (saved - gate)
