"""Loads what the worker serves: weights, adapters, tokenizer and room for KV.

Everything is checked before the worker says it is ready; what does not fit together is refused
with FailedPrecondition naming the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from services.attention.filling import doubling_context
from services.attention.settings import AttentionSettings
from understudy.chunks import config_digest
from understudy.errors import FailedPrecondition
from understudy.model.adapter import Adapter, load_adapter
from understudy.model.config import ModelConfig
from understudy.model.decoder import (
    Compute,
    Decoder,
    make_decoder,
    prepare_adapter,
    resolve_compute,
)
from understudy.model.ffn import Experts, is_placed
from understudy.model.kv_planes import DTYPES, block_bytes
from understudy.model.locate import locate_model
from understudy.model.paged import PagedKv
from understudy.model.placing import (
    CPU,
    ExpertsOfHost,
    place_adapter,
    place_weights,
    resolve_device,
)
from understudy.model.weights import LoadedModel, load_model
from understudy.text.tokenizer import Tokenizer
from understudy.text.vocabulary import Vocabulary

REFERENCE_MODE: Final = "reference"
VERSION_DIGITS: Final = 8


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model ready to serve."""

    version: str
    """Name and digest, such as `smollm2-135m-instruct@91d4a3c2`."""
    model: Decoder
    kv: PagedKv
    vocabulary: Vocabulary
    adapters: Mapping[str, Adapter]
    kv_digests: Mapping[str, bytes]
    """Config digest of KV by adapter name; the empty name is the bare model's."""
    max_context: int
    compute: Compute
    """The arithmetic, resolved for this machine."""

    @property
    def doubling_context(self) -> int:
        """The context at which a token of a prompt costs twice what it does at its beginning."""
        config = self.model.config
        head_macs = config.vocab_size * config.embedding_width
        return doubling_context(config.cost_per_position() - head_macs, config.cost_per_seen())

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end an output."""
        return self.model.config.eos_ids or self.vocabulary.eos_ids


def load_weights(settings: AttentionSettings) -> LoadedModel:
    """Load and check the weights that `settings` names."""
    path, compute = locate_model(settings.model), resolve_compute(settings.compute)
    return load_model(path, settings.weights_dtype, compute)


def serve_model(
    settings: AttentionSettings, loaded: LoadedModel, experts: Experts | None = None
) -> ServedModel:
    """Load what goes with the weights and reserve KV; feed-forwards are local without `experts`."""
    settings = resolve_kv_dtype(settings, loaded.compute)
    config, weights, device = loaded.config, loaded.stored, resolve_device(settings.device)
    vocabulary = load_vocabulary(settings, config)
    if experts is not None:
        weights = {name: weights[name] for name in weights if not is_placed(name)}
        experts = experts if device == CPU else ExpertsOfHost(experts)
    adapters = {
        name: _load_adapter(_adapter_file(path), loaded, device)
        for name, path in settings.adapter_paths().items()
    }
    digests = {"": "", **{name: adapter.digest for name, adapter in adapters.items()}}
    # Keys and values depend on how weights and activations were rounded, and by whom.
    mode = loaded.numerics or REFERENCE_MODE
    mode = mode if device == CPU else f"{mode}|{device.type}"
    num_blocks = resolve_num_blocks(settings, config)
    limit = settings.max_context or config.max_positions
    return ServedModel(
        version=f"{settings.model_name}@{loaded.digest[:VERSION_DIGITS]}",
        model=make_decoder(config, place_weights(weights, device), experts, loaded.compute),
        kv=PagedKv(config, num_blocks, settings.block_size, DTYPES[settings.kv_dtype], device),
        vocabulary=vocabulary,
        adapters=adapters,
        kv_digests={
            name: config_digest(loaded.digest, digest, settings.kv_dtype, settings.block_size, mode)
            for name, digest in digests.items()
        },
        max_context=min(limit, config.max_positions, num_blocks * settings.block_size),
        compute=loaded.compute,
    )


def resolve_kv_dtype(settings: AttentionSettings, compute: Compute) -> AttentionSettings:
    """Return the settings with the type of keys and values named; `compute` is the resolved one."""
    if settings.kv_dtype != "auto":
        return settings
    return replace(settings, kv_dtype="float16" if compute == "fast" else "float32")


def resolve_num_blocks(settings: AttentionSettings, config: ModelConfig) -> int:
    """Return the number of KV blocks: as set, or what fits the memory set for them.

    `settings` name the type of keys and values, as `resolve_kv_dtype` returns them.
    """
    if settings.num_blocks:
        return settings.num_blocks
    size_bytes = block_bytes(config, settings.block_size, DTYPES[settings.kv_dtype])
    num_blocks = (settings.kv_memory_mib << 20) // size_bytes
    if num_blocks == 0:
        raise FailedPrecondition(
            f"{settings.kv_memory_mib} MiB hold no KV block of {settings.block_size} tokens, which"
            f" takes {size_bytes} bytes; raise UNDERSTUDY_ATTENTION_KV_MEMORY_MIB."
        )
    return num_blocks


def load_vocabulary(settings: AttentionSettings, config: ModelConfig) -> Vocabulary:
    """Return what the worker needs of its tokenizer, which is not kept: routers send token ids."""
    vocabulary = load_tokenizer(settings.tokenizer, locate_model(settings.model)).vocabulary
    if vocabulary.size > config.vocab_size:
        raise FailedPrecondition(
            f"The tokenizer has {vocabulary.size} tokens, the model only {config.vocab_size}."
        )
    return vocabulary


def load_tokenizer(tokenizer: str, path: Path) -> Tokenizer:
    """Return the tokenizer that is named, or for `auto` the one that comes with the weights."""
    if tokenizer != "auto":
        return Tokenizer.from_file(Path(tokenizer))
    if path.suffix == ".gguf":
        return Tokenizer.from_gguf(path)
    return Tokenizer.from_file(path / "tokenizer.json")


def _load_adapter(path: Path, loaded: LoadedModel, device: torch.device) -> Adapter:
    adapter = load_adapter(path, loaded.config, loaded.digest)
    return place_adapter(prepare_adapter(adapter, loaded.compute), device)


def _adapter_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise FailedPrecondition(
            f"The adapter directory {path} holds {len(files)} safetensors files; it holds one."
        )
    return files[0]
