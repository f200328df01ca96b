"""What a family is: how its files spell a config and its tensors, where that differs from llama.

The forward pass knows nothing of families; everything they differ in is in the config.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from understudy.model.config import DEFAULT_SHARDS, ModelConfig
from understudy.model.fields import Fields

KEYS: Final = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "max_position_embeddings",
)
"""Keys of `config.json` that a family may call something else."""
FFN_BLOCK: Final = 32
"""Weights that share a scale in int8, int4 and the GGUF types but Q4_K and Q6_K."""


def unchanged(_: Fields, config: ModelConfig) -> ModelConfig:
    """Return the config as it is."""
    return config


def nothing(_: ModelConfig) -> dict[str, object]:
    """Return no keys."""
    return {}


def none_ignored(_: ModelConfig, __: str) -> bool:
    """Ignore no tensor."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufNames:
    """How GGUF files of a family differ from those of llama."""

    architecture: str
    has_interleaved_rows: bool = False
    """Whether the converter reordered the rows of q and k for llama.cpp's rotary layout."""
    read: Callable[[Fields, ModelConfig], ModelConfig] = unchanged
    """Complete a dense config from the keys below the architecture's prefix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A `model_type` and where it differs from llama."""

    name: str
    architecture: str
    """The class that Hugging Face files name."""
    read: Callable[[Fields, ModelConfig], ModelConfig] = unchanged
    """Complete a dense config from `config.json`."""
    write: Callable[[ModelConfig], dict[str, object]] = nothing
    """Return the keys of `config.json` that `read` reads."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Other names of `KEYS`."""
    renames: tuple[tuple[str, str], ...] = ()
    """Parts of tensor names and what they are canonically, in order; undone in reverse."""
    is_ignored: Callable[[ModelConfig, str], bool] = none_ignored
    """Tensors (canonical names) that files hold and the forward pass has no use for."""
    gguf: GgufNames | None = None

    def key(self, key: str) -> str:
        """Return what this family calls a key of `config.json`."""
        return self.keys.get(key, key)

    def canonical(self, name: str) -> str:
        """Return the canonical name of a tensor in a file of this family."""
        for theirs, ours in self.renames:
            name = name.replace(theirs, ours)
        return name

    def spelled(self, name: str) -> str:
        """Return what a file of this family calls a canonical tensor."""
        for theirs, ours in reversed(self.renames):
            name = name.replace(ours, theirs)
        return name


def shards_for(
    *, num_experts: int | None = None, ffn_size: int | None = None, block: int = FFN_BLOCK
) -> int:
    """Return the canonical number of partial sums for the experts and dense FFNs that there are.

    It divides the experts, and cuts a dense FFN between blocks of quantised weights: part of a
    block could only be kept in a wider format. What neither allows is one sum.
    """
    sizes = [(num_experts, 1), (ffn_size, block)]
    is_cut = all(size is None or size % (DEFAULT_SHARDS * unit) == 0 for size, unit in sizes)
    return DEFAULT_SHARDS if is_cut else 1


def read_shards(
    fields: Fields, *, num_experts: int | None = None, ffn_size: int | None = None
) -> int:
    """Return the number of partial sums that a file of ours names, or the canonical one."""
    canonical = shards_for(num_experts=num_experts, ffn_size=ffn_size)
    return fields.integer("num_ffn_shards", canonical)
