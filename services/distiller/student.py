"""Cuts a student out of its teacher: some layers, the busiest FFN units, projected embeddings.

A student trained from scratch on a few thousand utterances learns the tools and cannot copy names
it never met: their embeddings stay untrained. This one starts with the teacher's embeddings in
their leading principal directions (frozen, so that unseen tokens keep their meaning) and with
layers that already read text. Residual width and attention stay the teacher's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from services.distiller.batches import Batch
from understudy.model.attention import PackedCausal
from understudy.model.config import ModelConfig
from understudy.model.ffn import Gates, LocalExperts, PendingHidden
from understudy.model.transformer import Transformer

EMBEDDING = "model.embed_tokens.weight"
Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class StudentShape:
    """What remains of the teacher."""

    layers: tuple[int, ...]
    ffn_size: int
    embedding_size: int


def student_config(teacher: ModelConfig, shape: StudentShape) -> ModelConfig:
    """Return the student's config; one FFN shard, because it runs fused."""
    return replace(
        teacher,
        num_layers=len(shape.layers),
        ffn_size=shape.ffn_size,
        embedding_size=shape.embedding_size,
        max_positions=1024,
        num_ffn_shards=1,
    )


@torch.no_grad()
def cut_student(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    shape: StudentShape,
    sample: Sequence[Batch],
    token_counts: Tensor,
) -> Weights:
    """Return the student's initial weights under canonical names.

    `sample` shows which FFN units are busy; `token_counts` (V,) weighs the tokens whose embeddings
    the projection must keep apart.
    """
    basis = principal_directions(weights[EMBEDDING], token_counts, shape.embedding_size)
    busy = _busy_units(config, weights, sample)
    student: Weights = {
        EMBEDDING: weights[EMBEDDING] @ basis,
        "model.embed_up_proj.weight": basis.clone(),
        "model.embed_down_proj.weight": basis.T.contiguous(),
        "model.norm.weight": weights["model.norm.weight"].clone(),
    }
    for target, source in enumerate(shape.layers):
        kept = busy[source].topk(shape.ffn_size).indices.sort().values
        for name, tensor in weights.items():
            prefix = f"model.layers.{source}."
            if name.startswith(prefix):
                cut = _cut(name, tensor, kept)
                student[f"model.layers.{target}.{name.removeprefix(prefix)}"] = cut
    return student


def principal_directions(embedding: Tensor, token_counts: Tensor, size: int) -> Tensor:
    """Return an orthonormal basis (D, E) of the embedding's leading directions.

    Tokens count by the square root of their frequency plus one, so that rare names still count.
    """
    weight = token_counts.float().sqrt() + 1.0
    second_moment = (embedding * weight[:, None]).T @ embedding  # (D, D)
    _, vectors = torch.linalg.eigh(second_moment.double())
    basis: Tensor = vectors[:, -size:].flip(1).float().contiguous()
    return basis


def trainable(weights: Mapping[str, Tensor]) -> Weights:
    """Return the parameters that training may change: all but the frozen embedding table."""
    return {name: tensor for name, tensor in weights.items() if name != EMBEDDING}


class _UnitMeter:
    """`Experts` that computes locally and adds up how strongly each FFN unit speaks."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
        self._local = LocalExperts(replace(config, num_ffn_shards=1), weights)
        self._weights = weights
        self.strength = torch.zeros(config.num_layers, config.ffn_size)

    def submit(self, layer: int, hidden: Tensor, gates: Gates | None) -> PendingHidden:
        prefix = f"model.layers.{layer}.mlp"
        gate, up, down = (
            self._weights[f"{prefix}.{name}_proj.weight"] for name in ("gate", "up", "down")
        )
        inner = functional.silu(functional.linear(hidden, gate)) * functional.linear(hidden, up)
        self.strength[layer] += inner.square().mean(0).sqrt() * down.norm(dim=0)
        return self._local.submit(layer, hidden, gates)


def _busy_units(
    config: ModelConfig, weights: Mapping[str, Tensor], sample: Sequence[Batch]
) -> Tensor:
    meter = _UnitMeter(config, weights)
    model = Transformer(config, weights, meter)
    for batch in sample:
        model.forward(batch.tokens, batch.positions, PackedCausal(batch.lengths))
    return meter.strength


def _cut(name: str, tensor: Tensor, kept: Tensor) -> Tensor:
    if ".mlp.down_proj." in name:
        return tensor[:, kept].contiguous()
    if ".mlp." in name:
        return tensor[kept].contiguous()
    return tensor.clone()
