"""Packed experts of a shard as one operator computes them, stacked in memory while they load."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from understudy.model.config import ModelConfig
from understudy.model.ffn import FfnWeights, Gates, Mixture
from understudy.model.packed import Packed, weight_of
from understudy_kernels import PackedExperts, PackedFfn, ops
from understudy_kernels.packing import stack_experts

EXPERT: Final = re.compile(
    r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight"
)


@dataclass(frozen=True, slots=True)
class Together:
    """Experts of consecutive ids whose rows are gathered and multiplied in one call."""

    experts: PackedExperts
    first_expert: int
    is_exact: bool

    def partial(self, hidden: Tensor, gates: Gates) -> Tensor:
        """Return the gate-weighted sum (T, D) over the experts, in ascending expert id."""
        return ops.swiglu_experts(
            hidden.contiguous(),
            gates.ids.contiguous(),
            gates.weights.contiguous(),
            self.experts,
            first_expert=self.first_expert,
            exact=self.is_exact,
        )


def together(experts: Mapping[int, FfnWeights]) -> Mixture | None:
    """Return the experts as one operator takes them, None where they are not packed alike.

    Their matrices are copied unless they lie behind one another, as `ExpertStacks` places them.
    """
    ids = sorted(experts)
    rows = [(experts[id_].gate, experts[id_].up, experts[id_].down) for id_ in ids]
    for part in zip(*rows, strict=True):
        kinds = {
            (m.shape, m.weight.format, m.is_exact) if isinstance(m, Packed) else None for m in part
        }
        if len(kinds) > 1 or None in kinds:
            return None
    ffns = [PackedFfn(*(weight_of(matrix) for matrix in row)) for row in rows]
    first = experts[ids[0]].gate
    assert isinstance(first, Packed)
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    return Together(stack_experts(ffns), ids[0], first.is_exact)


class ExpertStacks:
    """Memory in which the experts of a shard lie behind one another, filled as they are loaded.

    A shard's experts are a stack of their own: who drops a shard frees its memory.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._num_experts = config.num_experts
        self._shard_size = max(1, config.num_experts // config.num_ffn_shards)
        self._stacks: dict[tuple[int, int, str], Tensor] = {}

    def placed(self, name: str, matrix: Packed) -> Packed:
        """Return the matrix of that canonical name in its place; others as they are."""
        found = EXPERT.fullmatch(name)
        if found is None or int(found[2]) >= self._num_experts:
            return matrix
        shard, row = divmod(int(found[2]), self._shard_size)
        size = matrix.weight.data.numel()
        key = int(found[1]), shard, found[3]
        stack = self._stacks.get(key)
        if stack is None:
            stack = self._stacks[key] = torch.empty((self._shard_size, size), dtype=torch.uint8)
        if stack.shape[1] != size:
            return matrix
        stack[row] = matrix.weight.data
        return replace(matrix, weight=replace(matrix.weight, data=stack[row]))
