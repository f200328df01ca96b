"""The feed-forward seam: SwiGLU shards, mixtures of experts, and who computes them.

A layer's feed-forward is a sum of `num_ffn_shards` canonical partial sums: slices of the inner
dimension of a dense FFN, or contiguous ranges of experts of a mixture, each added up in ascending
expert id. Whoever holds a shard computes its partial with `FfnShards.partial`; whoever gathers
them adds shard 0, 1, ... in that order. Fused and disaggregated placements of the same rows are
therefore the same arithmetic.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from understudy.errors import NotFound
from understudy.model.config import ModelConfig
from understudy.model.expanded import Expanded, report_expanded
from understudy.model.linear import Matrix, Plain, Weights, matrix

CUT_REASON: Final = (
    "num_ffn_shards of the model's config cuts through blocks of quantised weights; without that"
    " key it is chosen so that it does not"
)


@dataclass(frozen=True, slots=True)
class Gates:
    """The experts chosen for each token and the weight of each choice.

    A choice of weight 0 asks for nothing, whatever expert it names.
    """

    ids: Tensor  # (T, K) int64
    weights: Tensor  # (T, K) float32


class PendingHidden(Protocol):
    """A feed-forward that was submitted and is perhaps still being computed elsewhere."""

    def wait(self) -> Tensor:
        """Return the sum over all shards, (T, D); raises the failure of the computation."""
        ...


class Experts(Protocol):
    """Whoever computes the feed-forward of a layer: this process, or workers behind a wire."""

    def submit(self, layer: int, hidden: Tensor, gates: Gates | None) -> PendingHidden:
        """Start the feed-forward of `hidden` (T, D); gates are None exactly for a dense FFN."""
        ...


@dataclass(frozen=True, slots=True)
class FfnWeights:
    """One SwiGLU feed-forward, or a slice of its inner dimension F."""

    gate: Matrix  # (F, D)
    up: Matrix  # (F, D)
    down: Matrix  # (D, F)

    @classmethod
    def of(cls, weights: Weights, prefix: str) -> "FfnWeights":
        """Return the feed-forward whose canonical tensor names start with `prefix`."""
        parts = (matrix(weights, f"{prefix}.{name}_proj.weight") for name in ("gate", "up", "down"))
        return cls(*parts)

    def slice(self, start: int, stop: int) -> "FfnWeights":
        """Return the inner units [start, stop) in memory of their own layout."""
        return FfnWeights(
            self.gate.rows(start, stop), self.up.rows(start, stop), self.down.columns(start, stop)
        )


def ffn_shard(weights: FfnWeights, hidden: Tensor) -> Tensor:
    """Return the partial sum (T, D) that one slice of a SwiGLU feed-forward adds to `hidden`."""
    return weights.gate.swiglu(weights.up, weights.down, hidden)


class Mixture(Protocol):
    """The experts of one shard."""

    def partial(self, hidden: Tensor, gates: Gates) -> Tensor:
        """Return the gate-weighted sum (T, D) over the experts, in ascending expert id."""
        ...


@dataclass(frozen=True, slots=True)
class Apart:
    """Experts that are computed one after another; gradients flow through plain ones."""

    experts: Mapping[int, FfnWeights]

    def partial(self, hidden: Tensor, gates: Gates) -> Tensor:
        """Return the gate-weighted sum (T, D) over the experts, in ascending expert id."""
        return expert_partial(self.experts, hidden, gates)


def expert_partial(experts: Mapping[int, FfnWeights], hidden: Tensor, gates: Gates) -> Tensor:
    """Return the gate-weighted sum (T, D) over the given experts, in ascending expert id."""
    total = torch.zeros_like(hidden)
    for expert_id in sorted(experts):
        rows, choice = torch.where((gates.ids == expert_id) & (gates.weights != 0))
        if rows.numel():
            partial = ffn_shard(experts[expert_id], hidden[rows])
            weights = gates.weights[rows, choice].unsqueeze(-1)
            total = total.index_add(0, rows, partial * weights)
    return total


def dense_weights(weights: Weights, layer: int) -> FfnWeights:
    """Return the dense feed-forward of a layer from canonical tensor names."""
    return FfnWeights.of(weights, f"model.layers.{layer}.mlp")


def expert_weights(weights: Weights, layer: int, expert_id: int) -> FfnWeights:
    """Return one expert of a layer from canonical tensor names."""
    return FfnWeights.of(weights, f"model.layers.{layer}.mlp.experts.{expert_id}")


def is_placed(name: str) -> bool:
    """Whether `Experts` computes with the tensor of that name, wherever it is placed."""
    parts = (".mlp.experts.", ".mlp.gate_proj.", ".mlp.up_proj.", ".mlp.down_proj.")
    return any(part in name for part in parts)


def expert_range(config: ModelConfig, shard: int) -> range:
    """Return the ids of the experts whose sum is the given canonical shard."""
    size = config.num_experts // config.num_ffn_shards
    return range(shard * size, (shard + 1) * size)


def _expanded(layer: int, whole: FfnWeights, part: FfnWeights) -> Iterator[Expanded]:
    """Yield what a cut through blocks of quantised weights left in a wider format."""
    pairs = (whole.gate, part.gate), (whole.up, part.up), (whole.down, part.down)
    for name, (before, after) in zip(("gate", "up", "down"), pairs, strict=True):
        if after.format != before.format:
            share = math.prod(after.shape) / math.prod(before.shape)
            full = f"model.layers.{layer}.mlp.{name}_proj.weight"
            compact = round(before.size_bytes * share)
            yield Expanded(full, before.format, after.size_bytes, compact)


class FfnShards:
    """The weights of some (layer, shard) pairs, and their partial sums: what a worker holds."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        layers: Iterable[int] | None = None,
        shards: Iterable[int] | None = None,
    ) -> None:
        """Take the shards out of `weights`; None means all layers, all shards."""
        held_layers = range(config.num_layers) if layers is None else layers
        held_shards = list(range(config.num_ffn_shards) if shards is None else shards)
        self._dense: dict[tuple[int, int], FfnWeights] = {}
        self._experts: dict[tuple[int, int], Mixture] = {}
        size, expanded = config.ffn_size // config.num_ffn_shards, list[Expanded]()
        for layer in held_layers:
            for shard in held_shards:
                if config.is_mixture(layer):
                    ids = expert_range(config, shard)
                    self._experts[layer, shard] = _mixture(
                        {expert_id: expert_weights(weights, layer, expert_id) for expert_id in ids}
                    )
                else:
                    whole = dense_weights(weights, layer)
                    part = whole.slice(shard * size, (shard + 1) * size)
                    expanded += _expanded(layer, whole, part)
                    self._dense[layer, shard] = part
        report_expanded(expanded, CUT_REASON)

    def dense(self, layer: int, shard: int) -> FfnWeights:
        """Return one slice of a dense feed-forward that is held."""
        return self._dense[layer, shard]

    def partial(self, layer: int, shard: int, hidden: Tensor, gates: Gates | None) -> Tensor:
        """Return the partial sum (T, D) of one shard; gates are None exactly for a dense FFN.

        Raises NotFound where these weights do not hold the (layer, shard) pair.
        """
        if gates is None and (layer, shard) in self._dense:
            return ffn_shard(self._dense[layer, shard], hidden)
        if gates is not None and (layer, shard) in self._experts:
            return self._experts[layer, shard].partial(hidden, gates)
        kind = "dense" if gates is None else "mixture"
        raise NotFound(
            f"No {kind} feed-forward of layer {layer}, shard {shard} is held here.",
            {"layer": str(layer), "shard": str(shard)},
        )


def _mixture(experts: Mapping[int, FfnWeights]) -> Mixture:
    if any(isinstance(each.gate, Plain) for each in experts.values()):
        return Apart(experts)
    from understudy.model.packed_experts import together

    return together(experts) or Apart(experts)


def sum_partials(partials: Sequence[Tensor]) -> Tensor:
    """Add the partial sums of shards 0, 1, ... in that order: the only order there is."""
    total = partials[0]
    for partial in partials[1:]:
        total = total + partial
    return total


@dataclass(frozen=True, slots=True)
class _Deferred:
    compute: Callable[[], Tensor]

    def wait(self) -> Tensor:
        return self.compute()


class LocalExperts:
    """`Experts` in this process: every shard, summed in canonical order.

    With `num_ffn_shards` 1 the weights are used as they are, so gradients reach parameters; with
    more, slices are copied once and training of FFN weights is not possible through them.
    """

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.shards = FfnShards(config, weights)
        self._num_shards = config.num_ffn_shards

    def submit(self, layer: int, hidden: Tensor, gates: Gates | None) -> PendingHidden:
        """Return the feed-forward of `hidden` (T, D), computed when it is waited for."""
        return _Deferred(lambda: self._compute(layer, hidden, gates))

    def _compute(self, layer: int, hidden: Tensor, gates: Gates | None) -> Tensor:
        shards = range(self._num_shards)
        return sum_partials([self.shards.partial(layer, s, hidden, gates) for s in shards])
