"""What one expert worker holds: layers and shards of one model, and their partial sums."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import torch
from torch import Tensor

from understudy.errors import FailedPrecondition, InvalidArgument
from understudy.exchange.frame import Header
from understudy.exchange.shards import shard_ids, whole_shards
from understudy.exchange.tensors import Request
from understudy.model.config import ModelConfig
from understudy.model.ffn import FfnShards, Gates, sum_partials
from understudy.model.placing import CPU, place_weights
from understudy.model.weights import LoadedModel

DIGEST_CHARS: Final = 12


@dataclass(frozen=True, slots=True)
class Holdings:
    """Weights of consecutive layers and some canonical shards, with their model's digest."""

    config: ModelConfig
    digest: bytes
    """What must be equal for sums of two workers to add up bit by bit: values and arithmetic."""
    values_digest: str
    """Digest (hex) of the values alone: what a package of these weights is known by."""
    layers: range
    shards: tuple[int, ...]
    weights: FfnShards
    device: torch.device = CPU

    @classmethod
    def take(
        cls,
        model: LoadedModel,
        layers: Sequence[int] | None = None,
        expert_ids: Sequence[int] | None = None,
        device: torch.device = CPU,
    ) -> Self:
        """Take layers and experts (FFN shards of a dense model) out of a model; None means all.

        What is held is brought to `device`, where sums are computed; frames stay on the host.

        Raises FailedPrecondition when layers have gaps, an id is beyond the model, or the experts
        are not whole shards: a partial sum of half a shard has no place in the canonical order.
        """
        config = model.config
        held, shards = held_layers(config, layers), held_shards(config, expert_ids)
        weights = FfnShards(config, place_weights(model.stored, device), held, shards)
        return cls(config, model.ffn_digest, values_digest(model), held, shards, weights, device)

    @property
    def expert_ids(self) -> tuple[int, ...]:
        """What others know the shards by: ids of experts, or of the FFN shards themselves."""
        size = self.config.num_ffn_shards, self.config.num_experts
        return tuple(id_ for shard in self.shards for id_ in shard_ids(shard, *size))

    @property
    def package_name(self) -> str:
        """The name under which a Triton repository knows these layers and shards."""
        return package_name("ffn", self.values_digest, self.layers, self.shards)

    def holds(self, header: Header) -> bool:
        """Whether the layer and every shard that a request names are held here."""
        wanted = range(header.first_shard, header.first_shard + header.num_shards)
        return header.layer in self.layers and all(shard in self.shards for shard in wanted)

    def check_shape(self, header: Header) -> None:
        """Raise InvalidArgument naming the field in which a request does not fit the model."""
        num_choices = self.config.num_choices(header.layer)
        for field, actual, expected in (
            ("hidden size", header.hidden_size, self.config.hidden_size),
            ("experts per token", header.num_choices, num_choices),
        ):
            if actual != expected:
                raise InvalidArgument(
                    f"The request's {field} is {actual}; this model's is {expected}.",
                    {"field": field},
                )
        if not header.num_tokens or not header.num_shards:
            raise InvalidArgument("A request names at least one token and one shard.")

    def check_experts(self, request: Request) -> None:
        """Raise InvalidArgument for an expert id beyond the model's."""
        if request.expert_ids is not None:
            largest = int(request.expert_ids.max())
            if largest >= self.config.num_experts:
                raise InvalidArgument(
                    f"The request names expert {largest}; the model has {self.config.num_experts}."
                )

    def compute(self, header: Header, request: Request) -> Tensor:
        """Return the sum (T, D) over the request's shards, added in ascending order."""
        gates = None
        if request.expert_ids is not None and request.weights is not None:
            gates = Gates(request.expert_ids.to(self.device), request.weights.to(self.device))
        hidden = request.hidden.to(self.device)
        shards = range(header.first_shard, header.first_shard + header.num_shards)
        with torch.inference_mode():
            partials = [
                self.weights.partial(header.layer, shard, hidden, gates) for shard in shards
            ]
            return sum_partials(partials).to(CPU)


def values_digest(model: LoadedModel) -> str:
    """Return a digest (hex) of a model's config and values, whatever computes with them.

    The type that matrices were rounded to belongs to it, the format that they lie in does not.
    """
    return replace(model, compute="reference").ffn_digest.hex()


def package_name(kind: str, digest: str, layers: range, shards: Sequence[int]) -> str:
    """Return what the package of these layers and shards of a model is called."""
    held = "-".join(str(shard) for shard in shards)
    return f"{kind}-{digest[:DIGEST_CHARS]}-l{layers.start}-{layers.stop - 1}-s{held}"


def held_layers(config: ModelConfig, layers: Sequence[int] | None) -> range:
    """Return the layers to hold, None meaning all. Raises FailedPrecondition for gaps."""
    if layers is None:
        return range(config.num_layers)
    held = range(min(layers), max(layers) + 1)
    if list(held) != sorted(layers) or held.stop > config.num_layers:
        raise FailedPrecondition(
            f"Layers {sorted(layers)} are not consecutive layers below {config.num_layers}."
        )
    return held


def held_shards(config: ModelConfig, expert_ids: Sequence[int] | None) -> tuple[int, ...]:
    """Return the whole shards that the ids name. Raises FailedPrecondition for half a shard."""
    if expert_ids is None:
        return tuple(range(config.num_ffn_shards))
    size = config.num_ffn_shards, config.num_experts
    shards = tuple(sorted(whole_shards(frozenset(expert_ids), *size)))
    left = set(expert_ids).difference(*(shard_ids(shard, *size) for shard in shards))
    if left or not shards:
        raise FailedPrecondition(
            f"Experts {sorted(left)} are not whole shards of this model, which has "
            f"{config.num_ffn_shards} shards of {len(shard_ids(0, *size))} consecutive ids each."
        )
    return shards
