import json
from dataclasses import replace

import pytest

from understudy.errors import FailedPrecondition
from understudy.model.config import ModelConfig
from understudy.model.families import read_gguf_config, read_hf, write_hf

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


def test_smollm2_costs_its_parameters_minus_the_free_embedding_lookup() -> None:
    config = read_hf(SMOLLM2)

    # Tied: the table counts once, as the LM head. 134,515,008 is the published parameter count.
    assert config.cost_per_position() == 134_515_008
    assert (config.head_dim, config.eos_ids, config.num_ffn_shards) == (64, (2,), 2)


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


def test_odd_ffn_gets_a_single_shard() -> None:
    assert read_hf({**SMOLLM2, "intermediate_size": 1535}).num_ffn_shards == 1


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
