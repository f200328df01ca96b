"""The tensors of a step: token ids in, hidden states through the model, chosen tokens out.

Only rows that sample get logits. Rows of different sequences, adapters and phases share one
forward; the block tables say what each of them sees.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from services.attention.core import Choice
from services.attention.scheduler import ScheduledChunk
from services.attention.sequence import PackedMask
from understudy.model.adapter import Adapter, AdapterBatch
from understudy.model.decoder import Decoder
from understudy.model.paged import PagedKv, PagedSequence
from understudy.model.sampling import SamplingParams

WORD_BITS: Final = 32
LEAST_ALLOWED_MASS: Final = 1e-7


class ModelRunner:
    """`Runner` and `BlockContents` over a decoder and its paged KV."""

    def __init__(
        self,
        model: Decoder,
        kv: PagedKv,
        adapters: Mapping[str, Adapter],
        num_tokens: int,
    ) -> None:
        """Only the first `num_tokens` ids are chosen: those the tokenizer has a text for."""
        self._num_tokens = num_tokens
        self._model = model
        self._kv = kv
        self._adapters = adapters
        num_words = -(-model.config.vocab_size // WORD_BITS)
        self._everything: PackedMask = np.full(num_words, -1, dtype=np.int32)

    @property
    def block_bytes(self) -> int:
        """Size of one block."""
        return self._kv.block_bytes

    def export_block(self, block: int) -> bytes:
        """Return the content of a block."""
        return self._kv.export_block(block)

    def import_block(self, block: int, content: bytes | bytearray | memoryview) -> None:
        """Overwrite the content of a block; FailedPrecondition for a wrong length."""
        with torch.inference_mode():
            self._kv.import_block(block, content)

    def run(self, chunks: Sequence[ScheduledChunk]) -> list[Choice | None]:
        """Compute the chunks and choose a token for each sampling one, in order."""
        with torch.inference_mode():
            hidden = self._forward(chunks)
            sampling = [chunk for chunk in chunks if chunk.is_sampling]
            chosen = iter(self._choose(sampling, self._last_rows(chunks, hidden)))
        return [next(chosen) if chunk.is_sampling else None for chunk in chunks]

    def _forward(self, chunks: Sequence[ScheduledChunk]) -> Tensor:
        tokens: list[int] = []
        adapters: list[Adapter | None] = []
        paged: list[PagedSequence] = []
        for chunk in chunks:
            sequence, start = chunk.sequence, chunk.sequence.num_computed
            tokens.extend(sequence.tokens[start : start + chunk.num_tokens])
            adapter = self._adapters.get(sequence.submission.adapter)
            adapters.extend([adapter] * chunk.num_tokens)
            paged.append(PagedSequence(sequence.blocks, start, chunk.num_tokens))
        device = self._kv.device
        return self._model.advance(
            torch.tensor(tokens, device=device),
            self._kv,
            paged,
            AdapterBatch.of_rows(adapters, device),
        )

    def _last_rows(self, chunks: Sequence[ScheduledChunk], hidden: Tensor) -> Tensor:
        """Return the hidden states (B, D) after which the sampling chunks choose."""
        rows, end = [], 0
        for chunk in chunks:
            end += chunk.num_tokens
            if chunk.is_sampling:
                rows.append(end - 1)
        return hidden if len(rows) == hidden.shape[0] else hidden[rows]

    def _choose(self, chunks: Sequence[ScheduledChunk], hidden: Tensor) -> list[Choice]:
        if not chunks:
            return []
        sequences = [chunk.sequence for chunk in chunks]
        params = [sequence.submission.params for sequence in sequences]
        sampled = self._model.sample(
            self._model.logits(hidden)[:, : self._num_tokens],
            [SamplingParams(p.temperature, p.top_k, p.top_p) for p in params],
            [p.seed for p in params],
            [len(sequence.tokens) for sequence in sequences],
            self._masks([sequence.mask for sequence in sequences]),
        )
        rows = zip(
            sampled.tokens.tolist(),
            sampled.logprobs.tolist(),
            sampled.margins.tolist(),
            sampled.mask_losses.tolist(),
            strict=True,
        )
        return [Choice(t, masked_logprob(lp, loss), margin, loss) for t, lp, margin, loss in rows]

    def _masks(self, masks: Sequence[PackedMask | None]) -> Tensor | None:
        if all(mask is None for mask in masks):
            return None
        filled = [self._everything if mask is None else mask for mask in masks]
        return torch.from_numpy(np.stack(filled)).to(self._kv.device)


def masked_logprob(logprob: float, mask_loss: float) -> float:
    """Return a log-probability under the masked distribution from that under the model's own."""
    return min(0.0, logprob - math.log(max(1.0 - mask_loss, LEAST_ALLOWED_MASS)))
