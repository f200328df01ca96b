"""A model as an engine runs it, and which arithmetic it runs with.

`reference` is plain torch over float32 (or 16-bit) tensors: what every other mode is held to, and
what serves where no kernels can be compiled. `exact` keeps weights packed and multiplies float32 by
float32; `fast` rounds activations to int8 before they meet quantised weights. In both, a row's
result depends neither on the rest of its batch nor on the number of threads, where attention is
compiled; a warning at load says where it is not.
"""

import logging
from collections.abc import Sequence
from typing import Final, Literal, Protocol

from torch import Tensor

from understudy.model.adapter import Adapter, AdapterBatch
from understudy.model.config import ModelConfig
from understudy.model.ffn import Experts
from understudy.model.linear import Weights
from understudy.model.paged import PagedKv, PagedSequence
from understudy.model.sampling import Sampled, SamplingParams
from understudy.model.transformer import Transformer

LOG: Final = logging.getLogger(__name__)

Compute = Literal["exact", "fast", "reference"]


class Decoder(Protocol):
    """One forward over the sequences of a step, and the choice of their next tokens."""

    config: ModelConfig

    @property
    def is_batch_independent(self) -> bool:
        """Whether a row's bits depend neither on its batch nor on the number of threads."""
        ...

    def advance(
        self,
        tokens: Tensor,
        kv: PagedKv,
        sequences: Sequence[PagedSequence],
        adapter: AdapterBatch | None = None,
    ) -> Tensor:
        """Return the final-normed hidden states (T, D) of the new `tokens` (T,) of `sequences`."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (T, V) of final-normed hidden states (T, D)."""
        ...

    def sample(
        self,
        logits: Tensor,
        params: Sequence[SamplingParams],
        seeds: Sequence[int],
        positions: Sequence[int],
        mask: Tensor | None = None,
    ) -> Sampled:
        """Choose a token for each row of `logits`, as `understudy.model.sampling.sample` does."""
        ...


def resolve_compute(wanted: Compute) -> Compute:
    """Return `wanted`, or `reference` where this machine can neither compile nor load the kernels.

    The first call of a machine compiles, about a minute; a warning says why where it cannot.
    """
    if wanted == "reference":
        return wanted
    try:
        from understudy_kernels import load
    except ImportError:
        LOG.warning("understudy_kernels is not installed: computing with plain torch instead.")
        return "reference"
    return "reference" if load().isa == "reference" else wanted


def make_decoder(
    config: ModelConfig, weights: Weights, experts: Experts | None, compute: Compute
) -> Decoder:
    """Return the model over weights that were loaded for `compute`, as `resolve_compute` gave it.

    Feed-forwards are local unless `experts` is given.
    """
    if compute == "reference":
        return Transformer(config, weights, experts)
    from understudy.model.compiled import CompiledDecoder, is_compilable
    from understudy_kernels import load

    load()
    if is_compilable(config):
        return CompiledDecoder(config, weights, experts, is_exact=compute == "exact")
    LOG.warning(
        "No compiled operator fits the attention of this %s model: it runs in plain torch, so with"
        " the arithmetic %r a token may differ with what it is batched with.",
        config.family,
        compute,
    )
    return Transformer(config, weights, experts)


def prepare_adapter(adapter: Adapter, compute: Compute) -> Adapter:
    """Return the adapter as a model of that arithmetic multiplies it."""
    if compute == "reference":
        return adapter
    from understudy.model.packed import pack_adapter

    return pack_adapter(adapter)
