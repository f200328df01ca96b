"""The shape of a model: read from Hugging Face `config.json` or GGUF metadata, checked, hashed.

Holds no tensors and imports no torch. Anything that would change the arithmetic and is not
implemented (an unknown family, rope scaling, biases) is refused by name, never ignored.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final, Self

from understudy.errors import FailedPrecondition
from understudy.model.fields import Fields

FAMILIES: Final = ("llama", "mixtral")
DEFAULT_SHARDS: Final = 2
MAX_DIMENSION: Final = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything the forward pass needs to know about a model besides its weights.

    `embedding_size` (None: `hidden_size`) factorises the embedding: tokens embed into E, a
    projection lifts E to D, and the LM head goes D -> E -> V (ALBERT, arXiv 1909.11942).
    `num_ffn_shards` is the canonical number of partial sums of a feed-forward: slices of a dense
    FFN, contiguous ranges of experts in a mixture. Every placement adds the same partial sums in
    the same order, so it belongs to the model rather than to a deployment.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    max_positions: int = 2048
    tie_embeddings: bool = True
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    embedding_size: int | None = None
    num_experts: int = 0
    num_experts_per_token: int = 0
    num_ffn_shards: int = DEFAULT_SHARDS

    def __post_init__(self) -> None:
        _check(self)

    @property
    def embedding_width(self) -> int:
        """The width of the embedding table: `embedding_size` where factorised, else D."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    @property
    def is_moe(self) -> bool:
        """Whether feed-forwards are mixtures of experts behind a gate."""
        return self.num_experts > 0

    @classmethod
    def from_hf(cls, raw: Mapping[str, object]) -> Self:
        """Read the content of a Hugging Face `config.json`.

        Raises FailedPrecondition naming the family or key that is missing or not supported.
        """
        fields = Fields(raw, "config.json")
        family = fields.text("model_type")
        _refuse_unsupported(fields, family)
        hidden_size = fields.integer("hidden_size")
        num_heads = fields.integer("num_attention_heads")
        ffn_size = fields.integer("intermediate_size")
        num_experts = fields.integer("num_local_experts") if family == "mixtral" else 0
        return cls(
            family=family,
            vocab_size=fields.integer("vocab_size"),
            hidden_size=hidden_size,
            num_layers=fields.integer("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=fields.integer("num_key_value_heads", num_heads),
            head_dim=fields.integer("head_dim", _head_dim(hidden_size, num_heads)),
            ffn_size=ffn_size,
            rope_theta=_rope_theta(fields),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            max_positions=fields.integer("max_position_embeddings", 2048),
            tie_embeddings=fields.flag("tie_word_embeddings", default=False),
            bos_id=fields.optional_integer("bos_token_id"),
            eos_ids=fields.integers("eos_token_id"),
            embedding_size=fields.optional_integer("embedding_size"),
            num_experts=num_experts,
            num_experts_per_token=fields.integer("num_experts_per_tok") if num_experts else 0,
            num_ffn_shards=fields.integer(
                "num_ffn_shards", _default_shards(num_experts or ffn_size)
            ),
        )

    @classmethod
    def from_gguf(cls, raw: Mapping[str, object], *, tie_embeddings: bool) -> Self:
        """Read GGUF metadata given as plain values; the caller saw whether `output.weight` exists.

        Raises FailedPrecondition naming the family or key that is missing or not supported.
        """
        fields = Fields(raw, "GGUF metadata")
        family = fields.text("general.architecture")
        _refuse_unknown_family(family)
        hidden_size = fields.integer(f"{family}.embedding_length")
        num_heads = fields.integer(f"{family}.attention.head_count")
        head_dim = fields.integer(
            f"{family}.attention.key_length", _head_dim(hidden_size, num_heads)
        )
        ffn_size = fields.integer(f"{family}.feed_forward_length")
        num_experts = fields.integer(f"{family}.expert_count", 0)
        for key, supported in (
            (f"{family}.rope.dimension_count", head_dim),
            (f"{family}.attention.value_length", head_dim),
            (f"{family}.rope.scaling.type", "none"),
        ):
            fields.require(key, supported)
        return cls(
            family="mixtral" if num_experts else family,
            vocab_size=fields.integer(f"{family}.vocab_size"),
            hidden_size=hidden_size,
            num_layers=fields.integer(f"{family}.block_count"),
            num_heads=num_heads,
            num_kv_heads=fields.integer(f"{family}.attention.head_count_kv", num_heads),
            head_dim=head_dim,
            ffn_size=ffn_size,
            rope_theta=fields.number(f"{family}.rope.freq_base", 10_000.0),
            rms_norm_eps=_shortest_float32(
                fields.number(f"{family}.attention.layer_norm_rms_epsilon")
            ),
            max_positions=fields.integer(f"{family}.context_length"),
            tie_embeddings=tie_embeddings,
            bos_id=fields.optional_integer("tokenizer.ggml.bos_token_id"),
            eos_ids=fields.integers("tokenizer.ggml.eos_token_id"),
            num_experts=num_experts,
            num_experts_per_token=fields.integer(f"{family}.expert_used_count", 0),
            num_ffn_shards=_default_shards(num_experts or ffn_size),
        )

    def to_hf(self) -> dict[str, object]:
        """Return the content of a `config.json` that `from_hf` reads back unchanged."""
        raw: dict[str, object] = {
            "model_type": self.family,
            "architectures": [f"{self.family.capitalize()}ForCausalLM"],
            "hidden_act": "silu",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn_size,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.rms_norm_eps,
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": self.tie_embeddings,
            "bos_token_id": self.bos_id,
            "eos_token_id": list(self.eos_ids),
            "num_ffn_shards": self.num_ffn_shards,
        }
        if self.embedding_size is not None:
            raw["embedding_size"] = self.embedding_size
        if self.is_moe:
            raw["num_local_experts"] = self.num_experts
            raw["num_experts_per_tok"] = self.num_experts_per_token
        return raw

    def cost_per_position(self) -> int:
        """Return the parameters touched per position: active non-embedding ones plus the LM head.

        This is the unit of cost of a request. The table look-up of the input embedding is free;
        the projections of a factorised embedding and a tied LM head are counted.
        """
        attention_size = self.head_dim * (self.num_heads + self.num_kv_heads) * 2
        num_ffn = max(1, self.num_experts_per_token)
        per_layer = self.hidden_size * (
            attention_size + 3 * self.ffn_size * num_ffn + self.num_experts + 2
        )
        projections = 2 * self.hidden_size * (self.embedding_size or 0)
        head = self.vocab_size * self.embedding_width
        return self.num_layers * per_layer + self.hidden_size + projections + head

    def digest(self) -> str:
        """Return the SHA-256 (hex) of every field, equal for equal configs on any machine."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def _check(config: ModelConfig) -> None:
    _refuse_unknown_family(config.family)
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
    ):
        _require(name, size, "is out of range", is_met=0 < size < MAX_DIMENSION)
    head_dim, num_kv_heads = config.head_dim, config.num_kv_heads
    _require("head_dim", head_dim, "must be even for rotary positions", is_met=head_dim % 2 == 0)
    heads_divide = config.num_heads % num_kv_heads == 0
    problem = f"must divide num_heads {config.num_heads}"
    _require("num_kv_heads", num_kv_heads, problem, is_met=heads_divide)
    if config.is_moe:
        _check_experts(config)
    what, sharded = (
        ("num_experts", config.num_experts) if config.is_moe else ("ffn_size", config.ffn_size)
    )
    shards_divide = sharded % config.num_ffn_shards == 0
    problem = f"must divide {what} {sharded}"
    _require("num_ffn_shards", config.num_ffn_shards, problem, is_met=shards_divide)


def _check_experts(config: ModelConfig) -> None:
    num_experts, num_active = config.num_experts, config.num_experts_per_token
    has_gate = config.family == "mixtral"
    _require("num_experts", num_experts, "does not fit the family", is_met=has_gate)
    # Expert ids travel as 16-bit integers.
    _require("num_experts", num_experts, "is out of range", is_met=num_experts < 1 << 16)
    is_met = 0 < num_active <= num_experts
    problem = f"must lie between 1 and {num_experts} experts"
    _require("num_experts_per_token", num_active, problem, is_met=is_met)


def _require(name: str, value: int, problem: str, *, is_met: bool) -> None:
    if not is_met:
        raise FailedPrecondition(f"The model config's {name} {value} {problem}.", {"key": name})


def _refuse_unknown_family(family: str) -> None:
    if family not in FAMILIES:
        raise FailedPrecondition(
            f"Model family {family!r} is not supported; this version knows {', '.join(FAMILIES)}.",
            {"family": family},
        )


def _refuse_unsupported(fields: Fields, family: str) -> None:
    _refuse_unknown_family(family)
    for key, supported in (
        ("hidden_act", "silu"),
        ("attention_bias", False),
        ("mlp_bias", False),
        ("rope_interleaved", False),
        ("is_llama_config", True),
        ("sliding_window", None),
    ):
        fields.require(key, supported)
    for key in ("rope_scaling", "rope_parameters"):
        scaling = fields.section(key)
        scaling.require("rope_type", "default")
        scaling.require("type", "default")


def _rope_theta(fields: Fields) -> float:
    nested = fields.section("rope_parameters").number("rope_theta", 10_000.0)
    return fields.number("rope_theta", nested)


def _head_dim(hidden_size: int, num_heads: int) -> int:
    return hidden_size // max(1, num_heads)


def _default_shards(size: int) -> int:
    return DEFAULT_SHARDS if size % DEFAULT_SHARDS == 0 else 1


def _shortest_float32(value: float) -> float:
    # GGUF stores float32; seven digits give back the 1e-5 that config.json spells out.
    return float(f"{value:.7g}")
