"""The shape of a model: what the forward pass needs to know besides weights, checked and hashed.

Holds no tensors and imports no torch. How the files of a family spell it is the family's matter
(`understudy.model.families`); nothing here depends on the family's name.
"""

import hashlib
import json
import math
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Final

from understudy.model.config_checks import check
from understudy.model.shapes import attention_shapes, ffn_shapes, norm_shapes
from understudy.model.traits import DEFAULT_GATE, CacheEntry, GateRule, LatentShape, RopeScaling

DEFAULT_SHARDS: Final = 2
# Fields that came later; left out of the digest at their default, so that it outlives them.
_LATER_FIELDS: Final = frozenset(
    (
        "expert_size",
        "shared_size",
        "has_shared_gate",
        "dense_layers",
        "gate",
        "num_zero_experts",
        "attentions_per_layer",
        "latent",
        "query_rank",
        "has_qkv_bias",
        "has_qk_norm",
        "rope_scaling",
    )
)


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
    """Routed experts that compute; without those of zero computation."""
    num_experts_per_token: int = 0
    num_ffn_shards: int = DEFAULT_SHARDS
    expert_size: int | None = None
    """Inner size of one routed expert; None: that of the dense FFN."""
    shared_size: int = 0
    """Inner size of the experts that every token passes, together; 0: none."""
    has_shared_gate: bool = False
    """Whether a sigmoid of its own weighs what the shared experts add."""
    dense_layers: tuple[int, ...] = ()
    """Layers of a mixture whose feed-forward is dense."""
    gate: GateRule = DEFAULT_GATE
    num_zero_experts: int = 0
    """Experts that return their input; their ids follow those of the others."""
    attentions_per_layer: int = 1
    """2: two attentions with dense FFNs around one mixture (LongCat, arXiv 2509.01322)."""
    latent: LatentShape | None = None
    query_rank: int | None = None
    """Rank of factorised queries (MFA, arXiv 2412.19255); None: one matrix."""
    has_qkv_bias: bool = False
    has_qk_norm: bool = False
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        check(self)

    @property
    def embedding_width(self) -> int:
        """The width of the embedding table: `embedding_size` where factorised, else D."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    @property
    def is_moe(self) -> bool:
        """Whether there are mixtures of experts behind a gate."""
        return self.num_experts > 0

    @property
    def expert_width(self) -> int:
        """The inner size of one routed expert."""
        return self.ffn_size if self.expert_size is None else self.expert_size

    @property
    def num_attentions(self) -> int:
        """Attention layers, each with a cache of its own."""
        return self.num_layers * self.attentions_per_layer

    @property
    def rotary_dim(self) -> int:
        """How many numbers of a query or key are rotated."""
        return self.head_dim if self.latent is None else self.latent.rope_dim

    @property
    def cache_entries(self) -> tuple[CacheEntry, ...]:
        """What every attention layer caches per token, in the order of its bytes."""
        if self.latent is not None:
            latent = CacheEntry("latent", 1, self.latent.kv_rank)
            return latent, CacheEntry("rope_key", 1, self.latent.rope_dim)
        key = CacheEntry("key", self.num_kv_heads, self.head_dim)
        return key, CacheEntry("value", self.num_kv_heads, self.head_dim)

    def is_mixture(self, layer: int) -> bool:
        """Whether the feed-forward that `Experts` computes for this layer is behind a gate."""
        return self.is_moe and layer not in self.dense_layers

    def num_choices(self, layer: int) -> int:
        """Return the experts chosen per token in this layer; 0 for a dense feed-forward."""
        return self.num_experts_per_token if self.is_mixture(layer) else 0

    def cost_per_position(self) -> int:
        """Return the parameters touched per position: active non-embedding ones plus the LM head.

        This is the unit of cost of a request. The table look-up of the input embedding is free;
        the projections of a factorised embedding and a tied LM head are counted. Zero-computation
        experts take their share of the choices.
        """
        num_candidates = self.num_experts + self.num_zero_experts
        total = 2 * self.hidden_size * (self.embedding_size or 0)
        total += self.vocab_size * self.embedding_width + self.hidden_size
        for layer in range(self.num_layers):
            always, routed = 0, 0
            for name, shape in ffn_shapes(self, layer):
                size = math.prod(shape)
                always, routed = (
                    (always, routed + size) if ".experts." in name else (always + size, routed)
                )
            total += always
            if routed:
                # Of N candidates K are chosen, each computing expert as likely as any other.
                total += routed * self.num_experts_per_token // num_candidates
        for attention in range(self.num_attentions):
            for shapes in (attention_shapes(self, attention), norm_shapes(self, attention)):
                total += sum(math.prod(shape) for _, shape in shapes)
        return total

    def cost_per_seen(self) -> int:
        """Return the products of attention for each position that a position sees."""
        widths = 2 * self.head_dim
        if self.latent is not None:  # scores against latent and rotated key, then the latent's sum
            widths = 2 * self.latent.kv_rank + self.latent.rope_dim
        return self.num_attentions * self.num_heads * widths

    def digest(self) -> str:
        """Return the SHA-256 (hex) of every field, equal for equal configs on any machine."""
        values = asdict(self)
        defaults = {
            field.name: field.default for field in fields(self) if field.default is not MISSING
        }
        for name in _LATER_FIELDS:
            if getattr(self, name) == defaults[name]:
                del values[name]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
