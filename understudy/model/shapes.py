"""Canonical names and shapes of every tensor, from a config alone.

Canonical is what Hugging Face files of llama, Qwen and DeepSeek use; other families and GGUF are
renamed on load.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from understudy.model.config import ModelConfig

Named = tuple[str, tuple[int, ...]]


def layer_prefix(config: ModelConfig, attention: int) -> tuple[str, str]:
    """Return the layer's prefix and the suffix that tells its attentions apart ("" or ".0")."""
    layer, place = divmod(attention, config.attentions_per_layer)
    return f"model.layers.{layer}", "" if config.attentions_per_layer == 1 else f".{place}"


def expected_shapes(config: ModelConfig) -> Iterator[Named]:
    """Yield the canonical name and shape of every tensor the forward pass reads."""
    hidden = config.hidden_size
    yield "model.embed_tokens.weight", (config.vocab_size, config.embedding_width)
    if config.embedding_size is not None:
        yield "model.embed_up_proj.weight", (hidden, config.embedding_size)
        yield "model.embed_down_proj.weight", (config.embedding_size, hidden)
    if not config.tie_embeddings:
        yield "lm_head.weight", (config.vocab_size, config.embedding_width)
    yield "model.norm.weight", (hidden,)
    for layer in range(config.num_layers):
        start = layer * config.attentions_per_layer
        for attention in range(start, start + config.attentions_per_layer):
            yield from attention_shapes(config, attention)
            yield from norm_shapes(config, attention)
        yield from ffn_shapes(config, layer)


def norm_shapes(config: ModelConfig, attention: int) -> Iterator[Named]:
    """Yield the norms before an attention and before the feed-forward that follows it."""
    prefix, place = layer_prefix(config, attention)
    yield f"{prefix}.input_layernorm{place}.weight", (config.hidden_size,)
    yield f"{prefix}.post_attention_layernorm{place}.weight", (config.hidden_size,)


def attention_shapes(config: ModelConfig, attention: int) -> Iterator[Named]:
    """Yield the tensors of one attention."""
    layer, place = layer_prefix(config, attention)
    prefix = f"{layer}.self_attn{place}"
    if config.latent is not None:
        yield from _latent_shapes(config, prefix)
        return
    hidden, query_size = config.hidden_size, config.num_heads * config.head_dim
    kv_size = config.num_kv_heads * config.head_dim
    yield f"{prefix}.q_proj.weight", (config.query_rank or query_size, hidden)
    yield f"{prefix}.k_proj.weight", (kv_size, hidden)
    yield f"{prefix}.v_proj.weight", (kv_size, hidden)
    yield f"{prefix}.o_proj.weight", (hidden, query_size)
    if config.query_rank is not None:
        yield f"{prefix}.inter_norm.weight", (config.query_rank,)
        yield f"{prefix}.wq.weight", (query_size, config.query_rank)
    if config.has_qkv_bias:
        for name, size in (("q", config.query_rank or query_size), ("k", kv_size), ("v", kv_size)):
            yield f"{prefix}.{name}_proj.bias", (size,)
    if config.has_qk_norm:
        yield f"{prefix}.q_norm.weight", (config.head_dim,)
        yield f"{prefix}.k_norm.weight", (config.head_dim,)


def ffn_shapes(config: ModelConfig, layer: int) -> Iterator[Named]:
    """Yield the tensors of a layer's feed-forwards, the gate's included."""
    prefix, hidden = f"model.layers.{layer}", config.hidden_size
    if config.attentions_per_layer > 1:
        for place in range(config.attentions_per_layer):
            yield from _swiglu(f"{prefix}.mlps.{place}", hidden, config.ffn_size)
    if not config.is_mixture(layer):
        yield from _swiglu(f"{prefix}.mlp", hidden, config.ffn_size)
        return
    num_candidates = config.num_experts + config.num_zero_experts
    yield f"{prefix}.mlp.gate.weight", (num_candidates, hidden)
    if config.gate.has_bias:
        yield f"{prefix}.mlp.gate.e_score_correction_bias", (num_candidates,)
    for expert_id in range(config.num_experts):
        yield from _swiglu(f"{prefix}.mlp.experts.{expert_id}", hidden, config.expert_width)
    if config.shared_size:
        yield from _swiglu(f"{prefix}.mlp.shared_experts", hidden, config.shared_size)
    if config.has_shared_gate:
        yield f"{prefix}.mlp.shared_expert_gate.weight", (1, hidden)


def _latent_shapes(config: ModelConfig, prefix: str) -> Iterator[Named]:
    latent, heads, hidden = config.latent, config.num_heads, config.hidden_size
    assert latent is not None
    query_size = heads * (latent.nope_dim + latent.rope_dim)
    if latent.query_rank is None:
        yield f"{prefix}.q_proj.weight", (query_size, hidden)
    else:
        yield f"{prefix}.q_a_proj.weight", (latent.query_rank, hidden)
        yield f"{prefix}.q_a_layernorm.weight", (latent.query_rank,)
        yield f"{prefix}.q_b_proj.weight", (query_size, latent.query_rank)
    yield f"{prefix}.kv_a_proj_with_mqa.weight", (latent.kv_rank + latent.rope_dim, hidden)
    yield f"{prefix}.kv_a_layernorm.weight", (latent.kv_rank,)
    kv_size = heads * (latent.nope_dim + latent.value_dim)
    yield f"{prefix}.kv_b_proj.weight", (kv_size, latent.kv_rank)
    yield f"{prefix}.o_proj.weight", (hidden, heads * latent.value_dim)


def _swiglu(prefix: str, hidden: int, inner: int) -> Iterator[Named]:
    yield f"{prefix}.gate_proj.weight", (inner, hidden)
    yield f"{prefix}.up_proj.weight", (inner, hidden)
    yield f"{prefix}.down_proj.weight", (hidden, inner)
