"""Loading a model from a GGUF file or a safetensors directory, every tensor checked."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from understudy.errors import FailedPrecondition
from understudy.model.config import ModelConfig
from understudy.model.gguf import read_gguf
from understudy.model.safetensors_io import read_config, read_file, weight_files

READ_SIZE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Config, checked float32 tensors, and a digest over config and the weight files' bytes."""

    config: ModelConfig
    weights: Mapping[str, Tensor]
    digest: str


def load_model(path: Path) -> LoadedModel:
    """Load a `.gguf` file, or a directory with `config.json` and safetensors.

    Raises FailedPrecondition naming the file and the tensor that is missing, misshapen, unknown or
    not finite.
    """
    if path.suffix == ".gguf":
        config, weights = read_gguf(path)
        files = [path]
    else:
        config, weights = read_config(path), {}
        files = weight_files(path)
        for file in files:
            weights.update(read_file(file)[0])
    check_weights(config, weights, path.name)
    return LoadedModel(config, weights, _digest(config, files))


def expected_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the canonical name and shape of every tensor the forward pass reads."""
    hidden = config.hidden_size
    yield "model.embed_tokens.weight", (config.vocab_size, config.embedding_width)
    if config.embedding_size is not None:
        yield "model.embed_up_proj.weight", (hidden, config.embedding_size)
        yield "model.embed_down_proj.weight", (config.embedding_size, hidden)
    if not config.tie_embeddings:
        yield "lm_head.weight", (config.vocab_size, config.embedding_width)
    yield "model.norm.weight", (hidden,)
    query_size = config.num_heads * config.head_dim
    kv_size = config.num_kv_heads * config.head_dim
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.self_attn.q_proj.weight", (query_size, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (kv_size, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (kv_size, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, query_size)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield from _ffn_shapes(config, prefix)


def check_weights(config: ModelConfig, weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse missing, misshapen, unknown or non-finite tensors with FailedPrecondition."""
    expected = dict(expected_shapes(config))
    for name, shape in expected.items():
        if name not in weights:
            raise FailedPrecondition(f"{source} lacks the tensor {name!r}.", {"tensor": name})
        actual = tuple(weights[name].shape)
        if actual != shape:
            raise FailedPrecondition(
                f"{source} has {name!r} of shape {actual}; the config needs {shape}.",
                {"tensor": name, "expected": str(shape), "actual": str(actual)},
            )
        # A finite sum proves finite terms in one pass; only an infinite one needs a second look.
        if not weights[name].sum().isfinite() and not weights[name].isfinite().all():
            raise FailedPrecondition(
                f"{source} has values in {name!r} that are not finite.", {"tensor": name}
            )
    for name in weights.keys() - expected.keys():
        raise FailedPrecondition(f"{source} has the unknown tensor {name!r}.", {"tensor": name})


def random_weights(config: ModelConfig, seed: int, deviation: float = 0.02) -> dict[str, Tensor]:
    """Return seeded normal weights (norms are ones): the start of training, and tests."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.ones(shape)
        if len(shape) == 1
        else torch.randn(shape, generator=generator) * deviation
        for name, shape in expected_shapes(config)
    }


def _ffn_shapes(config: ModelConfig, prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    inward, outward = (config.ffn_size, config.hidden_size), (config.hidden_size, config.ffn_size)
    if not config.is_moe:
        yield f"{prefix}.mlp.gate_proj.weight", inward
        yield f"{prefix}.mlp.up_proj.weight", inward
        yield f"{prefix}.mlp.down_proj.weight", outward
        return
    yield f"{prefix}.block_sparse_moe.gate.weight", (config.num_experts, config.hidden_size)
    for expert_id in range(config.num_experts):
        expert = f"{prefix}.block_sparse_moe.experts.{expert_id}"
        yield f"{expert}.w1.weight", inward
        yield f"{expert}.w2.weight", outward
        yield f"{expert}.w3.weight", inward


def _digest(config: ModelConfig, files: list[Path]) -> str:
    state = hashlib.sha256(config.digest().encode())
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(READ_SIZE_BYTES):
                state.update(block)
    return state.hexdigest()
