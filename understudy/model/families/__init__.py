"""The families of models that are served, and how their files become configs and tensors.

A file per family says where it differs; a checkpoint of any other family is refused by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from understudy.errors import FailedPrecondition
from understudy.model.config import ModelConfig
from understudy.model.families import (
    deepseek_v2,
    deepseek_v3,
    llama,
    longcat_flash,
    mixtral,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    step3,
)
from understudy.model.families.family import (
    FFN_BLOCK,
    Family,
    GgufNames,
    read_shards,
    shards_for,
)
from understudy.model.families.rope_fields import read_gguf_rope, read_rope, write_rope
from understudy.model.fields import Fields

_MODULES: Final = (
    llama,
    qwen2,
    qwen3,
    mixtral,
    qwen2_moe,
    qwen3_moe,
    deepseek_v2,
    deepseek_v3,
    step3,
    longcat_flash,
)
FAMILIES: Final[Mapping[str, Family]] = {module.FAMILY.name: module.FAMILY for module in _MODULES}


def family_named(name: str) -> Family:
    """Return a family. Raises FailedPrecondition naming one that is not known."""
    if name not in FAMILIES:
        raise FailedPrecondition(
            f"Model family {name!r} is not supported; this version knows {', '.join(FAMILIES)}.",
            {"family": name},
        )
    return FAMILIES[name]


def read_hf(raw: Mapping[str, object]) -> ModelConfig:
    """Read the content of a Hugging Face `config.json`.

    Raises FailedPrecondition naming the family or key that is missing or not supported.
    """
    fields = Fields(raw, "config.json")
    family = family_named(fields.text("model_type"))
    _refuse_unsupported(fields)
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    ffn_size = fields.integer(family.key("intermediate_size"))
    allowed = fields.integer(family.key("max_position_embeddings"), 2048)
    theta, scaling, max_positions = read_rope(fields, allowed)
    dense = ModelConfig(
        family=family.name,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        num_layers=fields.integer(family.key("num_hidden_layers")),
        num_heads=num_heads,
        num_kv_heads=fields.integer(family.key("num_key_value_heads"), num_heads),
        head_dim=fields.integer("head_dim", hidden_size // max(1, num_heads)),
        ffn_size=ffn_size,
        rope_theta=theta,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        max_positions=max_positions,
        tie_embeddings=fields.flag("tie_word_embeddings", default=False),
        bos_id=fields.optional_integer("bos_token_id"),
        eos_ids=fields.integers("eos_token_id"),
        embedding_size=fields.optional_integer("embedding_size"),
        num_ffn_shards=1,
        rope_scaling=scaling,
    )
    config = family.read(fields, dense)
    if config.is_moe:
        return config
    return replace(config, num_ffn_shards=read_shards(fields, ffn_size=ffn_size))


def write_hf(config: ModelConfig) -> dict[str, object]:
    """Return the content of a `config.json` that `read_hf` reads back unchanged."""
    family = family_named(config.family)
    raw: dict[str, object] = {
        "model_type": family.name,
        "architectures": [family.architecture],
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        family.key("num_hidden_layers"): config.num_layers,
        "num_attention_heads": config.num_heads,
        family.key("num_key_value_heads"): config.num_kv_heads,
        "head_dim": config.head_dim,
        family.key("intermediate_size"): config.ffn_size,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_id,
        "eos_token_id": list(config.eos_ids),
        "num_ffn_shards": config.num_ffn_shards,
    }
    rope = write_rope(config.rope_theta, config.rope_scaling, config.max_positions)
    raw |= {family.key(key): value for key, value in rope.items()}
    if config.embedding_size is not None:
        raw["embedding_size"] = config.embedding_size
    return raw | family.write(config)


def gguf_names(raw: Mapping[str, object]) -> tuple[Family, GgufNames]:
    """Return the family that GGUF metadata name; llama with experts is Mixtral.

    Raises FailedPrecondition naming an architecture that is not known.
    """
    architecture = Fields(raw, "GGUF metadata").text("general.architecture")
    if architecture == "llama" and raw.get("llama.expert_count"):
        architecture = "mixtral"
    for family in FAMILIES.values():
        if family.gguf is not None and architecture in (family.gguf.architecture, family.name):
            return family, family.gguf
    known = dict.fromkeys(f.gguf.architecture for f in FAMILIES.values() if f.gguf)
    raise FailedPrecondition(
        f"Model family {architecture!r} is not supported in GGUF; this version reads"
        f" {', '.join(known)}.",
        {"family": architecture},
    )


def read_gguf_config(
    raw: Mapping[str, object],
    *,
    tie_embeddings: bool,
    rope_factors: Sequence[float] = (),
    ffn_block: int = FFN_BLOCK,
) -> ModelConfig:
    """Read GGUF metadata given as plain values; the caller saw whether `output.weight` exists.

    `rope_factors` is the table `rope_freqs.weight` where there is one, `ffn_block` the weights that
    share a scale where a dense FFN is cut. Raises FailedPrecondition naming the family or key that
    is missing or not supported.
    """
    family, names = gguf_names(raw)
    everything = Fields(raw, "GGUF metadata")
    prefix = f"{names.architecture}."
    below = {key[len(prefix) :]: raw[key] for key in raw if key.startswith(prefix)}
    fields = Fields(below, f"GGUF metadata, {names.architecture}")
    dense = _read_gguf_dense(family.name, fields, rope_factors)
    config = names.read(
        fields,
        replace(
            dense,
            tie_embeddings=tie_embeddings,
            bos_id=everything.optional_integer("tokenizer.ggml.bos_token_id"),
            eos_ids=everything.integers("tokenizer.ggml.eos_token_id"),
        ),
    )
    if config.is_moe:
        return config
    shards = shards_for(ffn_size=config.ffn_size, block=ffn_block)
    return replace(config, num_ffn_shards=shards)


def _read_gguf_dense(family: str, fields: Fields, rope_factors: Sequence[float]) -> ModelConfig:
    hidden_size = fields.integer("embedding_length")
    num_heads = fields.integer("attention.head_count")
    head_dim = fields.integer("attention.key_length", hidden_size // max(1, num_heads))
    for key in ("rope.dimension_count", "attention.value_length"):
        fields.require(key, head_dim)
    fields.require("attention.sliding_window", supported=0)
    # A mixture in every layer need not say how large a dense FFN would be.
    expert_size = fields.optional_integer("expert_feed_forward_length")
    ffn_size = fields.integer("feed_forward_length", expert_size)
    return ModelConfig(
        family=family,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        num_layers=fields.integer("block_count"),
        num_heads=num_heads,
        num_kv_heads=fields.integer("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        ffn_size=ffn_size,
        rope_theta=fields.number("rope.freq_base", 10_000.0),
        rms_norm_eps=_shortest_float32(fields.number("attention.layer_norm_rms_epsilon")),
        max_positions=fields.integer("context_length"),
        num_ffn_shards=1,
        rope_scaling=read_gguf_rope(fields, rope_factors),
    )


def _refuse_unsupported(fields: Fields) -> None:
    for key, supported in (
        ("hidden_act", "silu"),
        ("attention_bias", False),
        ("mlp_bias", False),
        ("is_llama_config", True),
        ("use_sliding_window", False),
        ("quantization_config", None),
    ):
        fields.require(key, supported)
    if fields.raw.get("model_type") == "llama":
        fields.require("rope_interleaved", supported=False)
    # Qwen names a window that it only uses where `use_sliding_window` says so.
    if not fields.has("use_sliding_window"):
        fields.require("sliding_window", None)
    for layer_type in fields.texts("layer_types"):
        if layer_type != "full_attention":
            raise FailedPrecondition(
                f"{fields.source} has layers of the type {layer_type!r}; only 'full_attention' is"
                " supported.",
                {"key": "layer_types"},
            )


def _shortest_float32(value: float) -> float:
    # GGUF stores float32; seven digits give back the 1e-5 that config.json spells out.
    return float(f"{value:.7g}")
