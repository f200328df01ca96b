"""A layer: attentions with their norms around one feed-forward that `Experts` computes.

What a step is to the attentions (angles and a context, slots of a cache) is theirs to know.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from understudy.model.adapter import AdapterBatch
from understudy.model.config import ModelConfig
from understudy.model.feed_forward import FeedForward
from understudy.model.ffn import Experts, FfnWeights, ffn_shard
from understudy.model.linear import Weights, vector
from understudy.model.shapes import layer_prefix

Step = TypeVar("Step")
StepTaken = TypeVar("StepTaken", contravariant=True)


class Sublayer(Protocol[StepTaken]):
    """An attention with its norm, and the norm of the feed-forward after it."""

    def attend(
        self, hidden: Tensor, step: StepTaken, adapter: AdapterBatch | None
    ) -> tuple[Tensor, Tensor]:
        """Return the hidden states (T, D) after attention, and normed for the feed-forward."""
        ...


@dataclass(frozen=True, slots=True)
class Layer(Generic[Step]):
    """Sublayers around one feed-forward.

    With several sublayers each has a dense FFN here, and the mixture's answer is only waited for
    after the last: the shortcut that hides it (ScMoE; LongCat-Flash, arXiv 2509.01322, section 2).
    """

    sublayers: tuple[Sublayer[Step], ...]
    dense: tuple[FfnWeights, ...]
    feed_forward: FeedForward

    def __call__(self, hidden: Tensor, step: Step, adapter: AdapterBatch | None) -> Tensor:
        """Return the hidden states (T, D) after the layer."""
        first, *others = self.sublayers
        hidden, normed = first.attend(hidden, step, adapter)
        pending = self.feed_forward.submit(normed)
        for sublayer, ffn in zip(others, self.dense, strict=False):
            hidden = hidden + ffn_shard(ffn, normed)
            hidden, normed = sublayer.attend(hidden, step, adapter)
        if self.dense:
            hidden = hidden + ffn_shard(self.dense[-1], normed)
        return hidden + pending.wait()


def make_layer(
    config: ModelConfig,
    weights: Weights,
    layer: int,
    experts: Experts,
    make_sublayer: Callable[[int], Sublayer[Step]],
) -> Layer[Step]:
    """Return a layer whose sublayers, by the index of their attention, `make_sublayer` gives."""
    num = config.attentions_per_layer
    prefix = f"model.layers.{layer}.mlps"
    dense = (FfnWeights.of(weights, f"{prefix}.{place}") for place in range(num if num > 1 else 0))
    return Layer(
        tuple(make_sublayer(layer * num + place) for place in range(num)),
        tuple(dense),
        FeedForward(config, weights, layer, experts),
    )


def sublayer_norms(config: ModelConfig, weights: Weights, index: int) -> tuple[Tensor, Tensor]:
    """Return the norm before an attention and that before the feed-forward which follows it."""
    prefix, place = layer_prefix(config, index)
    return (
        vector(weights, f"{prefix}.input_layernorm{place}.weight"),
        vector(weights, f"{prefix}.post_attention_layernorm{place}.weight"),
    )
