"""Runs a compiled package. Needs torch and the standard library, nothing else of ours.

This folder is copied into the model repository, where Triton's python backend imports it; tests and
benchmarks import the original.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from .files import Compiled, Opened
from .manifest import PackageError

DENSE: Final = "dense"
"""In names of weights, what stands where an expert's id stands in a mixture."""
PARTS: Final = ("gate", "up", "down")


class FfnPackage:
    """Partial sums of the feed-forwards of some layers and canonical shards.

    A compiled program is one SwiGLU whose weights are inputs, so that every layer, shard and expert
    of one format and size runs through it; what is added up, and in which order, is as in
    `understudy.model.ffn`. Weights are named `<layer>.<shard>.<expert or dense>.<program>.<part>`.
    """

    def __init__(self, directory: Path, config_digest: str | None = None) -> None:
        """Check and open a package. Raises PackageError."""
        opened = Opened("ffn", directory, config_digest)
        self.manifest = opened.manifest
        self._units: dict[str, _Unit] = {}
        for name in opened.weights:
            prefix, kind, part = name.rsplit(".", 2)
            if part == PARTS[0]:
                weights = [opened.weights[f"{prefix}.{kind}.{part}"] for part in PARTS]
                self._units[prefix] = _Unit(opened.programs[int(kind)], weights)
        self._held = {".".join(prefix.split(".")[:2]) for prefix in self._units}
        shape = self.manifest.shape
        self._experts_per_shard = shape["num_experts"] // shape["num_ffn_shards"]

    def compute(
        self,
        layer: int,
        first_shard: int,
        num_shards: int,
        hidden: Tensor,  # (T, D)
        expert_ids: Tensor | None = None,  # (T, K)
        gate_weights: Tensor | None = None,  # (T, K)
    ) -> Tensor:
        """Return the sum (T, D) over consecutive shards, added in ascending order."""
        if f"{layer}.{first_shard}" not in self._held or num_shards < 1:
            raise PackageError(f"Layer {layer}, shard {first_shard} is not in this package.")
        is_mixture = f"{layer}.{first_shard}.{DENSE}" not in self._units
        if is_mixture == (expert_ids is None or gate_weights is None):
            raise PackageError("Expert ids and weights come exactly with a mixture of experts.")
        total: Tensor | None = None
        for shard in range(first_shard, first_shard + num_shards):
            partial = self._partial(layer, shard, hidden, expert_ids, gate_weights)
            total = partial if total is None else total + partial
        assert total is not None, "there is at least one shard"
        return total

    def _partial(
        self,
        layer: int,
        shard: int,
        hidden: Tensor,
        expert_ids: Tensor | None,
        gate_weights: Tensor | None,
    ) -> Tensor:
        if expert_ids is None or gate_weights is None:
            return self._swiglu(f"{layer}.{shard}.{DENSE}", hidden)
        size = self._experts_per_shard
        is_asked = (gate_weights != 0) & (expert_ids // size == shard)
        total = torch.zeros_like(hidden)
        for expert_id in expert_ids[is_asked].unique().tolist():  # ascending
            rows, choice = torch.where(is_asked & (expert_ids == expert_id))
            partial = self._swiglu(f"{layer}.{shard}.{expert_id}", hidden[rows])
            weights = gate_weights[rows, choice].unsqueeze(-1)
            total = total.index_add(0, rows, partial * weights)
        return total

    def _swiglu(self, prefix: str, hidden: Tensor) -> Tensor:
        unit = self._units.get(prefix)
        if unit is None:
            raise PackageError(f"The feed-forward {prefix} is not in this package.")
        return unit.program.run([hidden, *unit.weights])[0]


@dataclass(frozen=True, slots=True)
class _Unit:
    """One feed-forward, a shard of one, or one expert."""

    program: Compiled
    weights: list[Tensor]
