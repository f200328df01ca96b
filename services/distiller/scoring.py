"""Runs a model over a packed batch and scores the candidates of its free positions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from services.distiller.batches import Batch
from understudy.model.adapter import Adapter, AdapterBatch, AdapterGroup
from understudy.model.attention import PackedCausal
from understudy.model.transformer import Transformer


class Scorer:
    """A model (with an adapter or without) as a function from batches to candidate logits."""

    def __init__(
        self, model: Transformer, weights: Mapping[str, Tensor], adapter: Adapter | None = None
    ) -> None:
        self._model = model
        self._down = weights.get("model.embed_down_proj.weight")
        tied = model.config.tie_embeddings
        self._head = weights["model.embed_tokens.weight" if tied else "lm_head.weight"]
        self._adapter = None if adapter is None else AdapterBatch([AdapterGroup(adapter)])

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits (N, C) of the batch's columns at its free positions."""
        attention = PackedCausal(batch.lengths)
        hidden = self._model.forward(batch.tokens, batch.positions, attention, self._adapter)
        chosen = hidden.index_select(0, batch.rows)
        if self._down is not None:
            chosen = functional.linear(chosen, self._down)
        return functional.linear(chosen, self._head.index_select(0, batch.vocabulary))
